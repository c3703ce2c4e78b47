"""Context and slots together: what the profile wants, cut to what memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from velollm.facts import Facts, ModelFacts
from velollm.knobs import Knobs, KnobValue, Wish
from velollm.rules.base import Advice, Rule, Skip, integer, pinned
from velollm.rules.room import Room, lacking_shape, needed_bytes, rooms, weight_bytes
from velollm.units import render_bytes

# Below this a chat template and one short question hardly fit; smaller contexts are not worth offering.
_LEAST_CONTEXT = 512


@dataclass(frozen=True)
class _Want:
    """What is asked for, before memory is looked at. ``fixed`` values are the user's and do not shrink."""

    context: int
    slots: int
    minimum: int
    why: str
    fixed_context: bool
    fixed_slots: bool


@dataclass(frozen=True)
class _Fit:
    context: int
    slots: int
    needed_bytes: int
    room: Room


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """The context and slots that the profile wants, within the model's training context and free memory.

    Needed: weights, KV cache for every slot, compute buffers. Usable: what is free in main memory
    (or left below the container's limit), or on the GPU with most free memory, less a tenth and
    512 MiB (a quarter at most). Where it does not fit, the context is halved down to the profile's
    minimum, then slots are halved, then the context shrinks further. The context never falls below
    the engine's own unless memory forces it, or the profile is there to save memory: cutting a
    conversation short gives no error.
    """
    if advice := pinned(wish, "context_tokens", "slots"):
        return advice
    if facts.model is None:
        return Skip("no model is known, so its memory is not either", ("model",))
    places, lacked = rooms(facts, wish)
    if not places:
        return Skip("how much memory is available is unknown", lacked)
    want = _want(facts.model, wish)
    smallest = needed_bytes(facts.model, _with(knobs, wish, want.context, 1))
    if smallest is None:
        return Skip("the memory of the model cannot be estimated", lacking_shape(facts.model))
    fit = _fit_somewhere(facts.model, knobs, wish, want, places)
    if fit is None:
        return _nothing_fits(facts.model, want, places)
    return Advice(
        {"context_tokens": fit.context, "slots": fit.slots},
        _reason(want, fit, places),
        "user" if want.fixed_context or want.fixed_slots else "arithmetic",
    )


def _want(model: ModelFacts, wish: Wish) -> _Want:
    """Context and slots of the user, the profile or the engine, whichever counts."""
    profile, default = wish.profile, integer(wish.defaults, "context_tokens") or 0
    pinned_context, pinned_slots = integer(wish.pins, "context_tokens"), integer(wish.pins, "slots")
    context, why = profile.context_tokens, f"the profile {profile.name} wants it"
    if pinned_context is not None:
        context, why = pinned_context, "you asked for it with --set"
    elif default > context and not profile.may_shrink_context:
        context, why = default, "the engine's own, more than the profile asks for"
    trained = model.context_train
    if pinned_context is None and trained and context > trained:
        context, why = trained, "all that the model was trained for"
    slots = pinned_slots or profile.slots
    if "slots" not in wish.supported:
        slots = integer(wish.defaults, "slots") or 1
    minimum = min(context, profile.minimum_context_tokens)
    fixed_slots = pinned_slots is not None or "slots" not in wish.supported
    return _Want(context, slots, minimum, why, pinned_context is not None, fixed_slots)


def _with(knobs: Knobs, wish: Wish, context: int, slots: int) -> dict[str, KnobValue]:
    """The knobs to estimate with; the batch is the larger of plan and default, as either may run in the end."""
    values = {**knobs, "context_tokens": context, "slots": slots}
    for name in ("batch", "ubatch"):
        sizes = [size for source in (knobs, wish.defaults) if (size := integer(source, name)) is not None]
        values[name] = max(sizes, default=512)
    return values


def _steps(want: _Want) -> Iterator[tuple[int, int]]:
    """(context, slots) from the wish downwards, in the order in which they are given up."""
    slot_steps = [want.slots] if want.fixed_slots else list(_halves(want.slots, 1))
    context_steps = [want.context] if want.fixed_context else list(_halves(want.context, want.minimum))
    for slots in slot_steps:
        for context in context_steps:
            yield context, slots
    if not want.fixed_context:
        for context in _halves(want.minimum, min(_LEAST_CONTEXT, want.minimum)):
            yield context, slot_steps[-1]


def _halves(start: int, least: int) -> Iterator[int]:
    value = start
    while value > least:
        yield value
        value //= 2
    yield least


def _fit_somewhere(model: ModelFacts, knobs: Knobs, wish: Wish, want: _Want, places: tuple[Room, ...]) -> _Fit | None:
    """The first step that fits: on the card while the profile's minimum does, else in main memory."""
    for room in places:
        for context, slots in _steps(want):
            if room is not places[-1] and context < want.minimum:
                break
            needed = needed_bytes(model, _with(knobs, wish, context, slots))
            if needed is not None and needed <= room.usable_bytes:
                return _Fit(context, slots, needed, room)
    return None


def _reason(want: _Want, fit: _Fit, places: tuple[Room, ...]) -> str:
    needs = f"needs about {render_bytes(fit.needed_bytes)} of {render_bytes(fit.room.available_bytes)} {fit.room.place}"
    if fit.room is not places[0]:
        needs += f", too much for {places[0].place} alone"
    if (fit.context, fit.slots) == (want.context, want.slots):
        slots = f"each of {fit.slots} slots" if fit.slots > 1 else "one slot"
        return f"{fit.context} tokens in {slots}: {want.why}; {needs}"
    wanted = f"{want.context} tokens" + (f" for each of {want.slots} slots" if want.slots > 1 else "")
    return f"memory holds no more: {wanted} would not fit ({want.why}); {needs}"


def _nothing_fits(model: ModelFacts, want: _Want, places: tuple[Room, ...]) -> Advice | Skip:
    roomiest = max(places, key=lambda room: room.usable_bytes)
    text = (
        f"does not fit: {render_bytes(weight_bytes(model))} of weights, "
        f"{render_bytes(roomiest.usable_bytes)} of {roomiest.place} to be used"
    )
    if not (want.fixed_context or want.fixed_slots):
        return Skip(f"the model {text}; a smaller model or quantization is needed")
    context = want.context if want.fixed_context else want.minimum
    slots = want.slots if want.fixed_slots else 1
    return Advice({"context_tokens": context, "slots": slots}, f"as asked with --set, but the model {text}", "user")


rule = Rule(
    "fit-context",
    ("context_tokens", "slots"),
    decide,
    needs=("kv_type_k", "kv_type_v", "flash_attention", "batch", "ubatch"),
    title="Context and slots that fit memory",
)
