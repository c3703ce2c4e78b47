"""How many prompt tokens are taken and computed at once."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, KnobValue, Wish
from velollm.rules.base import Advice, Rule, Skip, integer, pinned
from velollm.rules.room import computes_on_cpu

_CPU_TOKENS = 512
_GPU_TOKENS = (1024, 2048)


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """512 tokens at once on a CPU; on a GPU the engine's own size, with larger ones for the trial.

    A CPU is busy with a few hundred tokens already, and larger batches only take memory. A GPU may
    fill prompts faster with 1,024 or 2,048, at the price of larger compute buffers. The physical
    batch (`ubatch`) is never larger than the logical one: the engine would cut it.
    """
    if advice := pinned(wish, "batch", "ubatch"):
        return _kept_within(advice)
    on_cpu = computes_on_cpu(facts, wish)
    if on_cpu is None and not {"batch", "ubatch"} & set(wish.pins):
        return Skip("whether there is a GPU is unknown", ("gpus",))
    if "batch" in wish.pins or "ubatch" in wish.pins:
        return _half_pinned(wish)
    if on_cpu:
        values = {"batch": _CPU_TOKENS, "ubatch": _CPU_TOKENS}
        return Advice(values, "a CPU gains nothing from larger steps, and they take memory", "table")
    batch = integer(wish.defaults, "batch") or _CPU_TOKENS
    ubatch = min(batch, integer(wish.defaults, "ubatch") or _CPU_TOKENS)
    candidates = tuple({"batch": max(batch, n), "ubatch": n} for n in _GPU_TOKENS if n > ubatch)
    return Advice({"batch": batch, "ubatch": ubatch}, "the engine's own size for a GPU", "engine", candidates)


def _kept_within(advice: Advice) -> Advice:
    batch, ubatch = integer(advice.values, "batch"), integer(advice.values, "ubatch")
    if batch is None or ubatch is None or ubatch <= batch:
        return advice
    return Advice({"batch": batch, "ubatch": batch}, "as asked with --set; ubatch cannot be larger than batch", "user")


def _half_pinned(wish: Wish) -> Advice:
    """One of the two is the user's; the other follows, so that ubatch stays within batch."""
    batch, ubatch = integer(wish.pins, "batch"), integer(wish.pins, "ubatch")
    values: dict[str, KnobValue]
    if batch is not None:
        values = {"batch": batch, "ubatch": min(batch, integer(wish.defaults, "ubatch") or _CPU_TOKENS)}
        return Advice(values, "batch as asked with --set, ubatch within it", "user")
    values = {"batch": max(ubatch or 1, integer(wish.defaults, "batch") or _CPU_TOKENS), "ubatch": ubatch}
    return Advice(values, "ubatch as asked with --set, batch large enough for it", "user")


rule = Rule("batch", ("batch", "ubatch"), decide, title="Prompt tokens in one step")
