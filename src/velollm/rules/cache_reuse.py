"""Reuse behind an edited beginning."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves it off, as entries that were computed behind another beginning can change answers.

    `--set cache_reuse=256` turns it on: a prompt whose beginning was edited is then read much sooner.
    """
    return pinned(wish, "cache_reuse") or Skip("it can change answers, so it is yours to choose")


rule = Rule("cache-reuse", ("cache_reuse",), decide, title="Reuse behind an edited beginning")
