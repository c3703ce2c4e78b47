"""Weights laid out for the CPU."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves it on: prefill fell from 130 to 87 tokens/s and decode from 46 to 33 without it.

    It costs time at loading, and beside a mapped file the memory of a second copy, which the rule for the
    load mode sees to; `velollm tune` tries it off.
    """
    return pinned(wish, "repack") or Skip("the engine lays weights out anew wherever its CPU kernels gain from it")


rule = Rule("repack", ("repack",), decide, title="Weights laid out for the CPU")
