"""How many models may be in memory together."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned
from velollm.rules.room import lacking_shape, machine_of, needed_bytes


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Takes the profile's wish, cut to as many models of this size as memory holds.

    More models than memory holds push each other out, and each time costs a cold load. Models of
    other sizes are not known here; the estimate takes all to be like this one.
    """
    if advice := pinned(wish, "max_loaded_models"):
        return advice
    wanted = wish.profile.max_loaded_models
    if wanted is None:
        return Skip(f"the profile {wish.profile.name} leaves the engine's own number")
    if wanted == 1:
        return Advice({"max_loaded_models": 1}, f"the profile {wish.profile.name} wants one at a time", "table")
    if facts.model is None:
        return Skip("no model is known to measure memory with", ("model",))
    needed = needed_bytes(facts.model, knobs)
    if needed is None:
        return Skip("the memory of the model cannot be estimated", lacking_shape(facts.model))
    machine = machine_of(facts, wish)
    place = machine.cards[0] if machine.cards else machine.main
    if place is None or "gpus.vram_bytes" in machine.lacked:
        return Skip("how much memory is available is unknown", machine.lacked)
    fitting = max(1, place.usable_bytes // max(1, needed))
    if fitting >= wanted:
        reason = f"the profile {wish.profile.name} wants {wanted}, and memory holds as many of this size"
    else:
        reason = f"{place.place} holds {fitting} of this size, fewer than the {wanted} wanted"
    return Advice({"max_loaded_models": min(wanted, fitting)}, reason)


rule = Rule(
    "max-loaded-models",
    ("max_loaded_models",),
    decide,
    needs=("context_tokens", "slots", "kv_type_k", "kv_type_v", "flash_attention", "batch", "ubatch"),
    title="Models in memory together",
)
