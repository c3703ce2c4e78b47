"""Fused attention or not."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves the engine's `auto`, which turns flash attention on wherever the device can do it.

    It keeps attention scores out of memory and is what a quantized V cache needs. Where the engine
    itself keeps it off (a GPU that cannot do it), it stays off: forcing it would fail or be slow.
    """
    if advice := pinned(wish, "flash_attention"):
        return advice
    if wish.defaults.get("flash_attention") == "off":
        return Skip("the engine keeps it off on this device")
    return Advice({"flash_attention": "auto"}, "the engine turns it on wherever the device can do it", "engine")


rule = Rule("flash-attention", ("flash_attention",), decide, title="Flash attention where the device can")
