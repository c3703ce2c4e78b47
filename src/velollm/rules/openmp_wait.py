"""Waiting threads of OpenMP."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves it to the run-time: which is better depends on what else the machine does.

    Sleeping threads keep their speed beside a busy program and lose a third of it on an idle machine;
    `velollm tune` measures both.
    """
    return pinned(wish, "openmp_wait") or Skip(
        "which is better depends on what else runs here: `velollm tune` measures both"
    )


rule = Rule("openmp-wait", ("openmp_wait",), decide, title="Waiting threads of OpenMP")
