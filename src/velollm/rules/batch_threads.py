"""Threads for prompts."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves it to the engine, which takes as many as for tokens; only measuring tells whether more help.

    Prefill is bound by arithmetic and can gain from the second thread of each core, where a machine has one;
    `velollm tune` tries it.
    """
    return pinned(wish, "batch_threads") or Skip(
        "whether prompts gain from more threads only measuring tells: `velollm tune` tries it"
    )


rule = Rule("prefill-threads", ("batch_threads",), decide, title="Threads for prompts")
