"""The search: context, slots and batch together, on the devices of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from velollm.facts import ModelFacts
from velollm.knobs import Knobs, KnobValue, Wish
from velollm.rules.base import integer
from velollm.rules.costs import PLACING, Costs, estimate_costs
from velollm.rules.placement import Placement, anywhere, place_costs, wholly_on_gpus
from velollm.rules.room import Machine

# Below this a chat template and one short question hardly fit; smaller contexts are not worth offering.
LEAST_CONTEXT = 512
# Contexts are looked for in steps of this: four times the engine's padding of a cache (256 cells).
_STEP = 1024
# The engine's own physical batch (llama.cpp b10488, common/common.h), which any machine can compute.
LEAST_BATCH = 512


@dataclass(frozen=True)
class Want:
    """What is asked for, before memory is looked at. ``fixed`` values are the user's and do not shrink."""

    context: int
    slots: int
    minimum: int
    why: str
    fixed_context: bool
    fixed_slots: bool


@dataclass(frozen=True)
class Fit:
    """What fits: context, slots, and where everything goes."""

    context: int
    slots: int
    placement: Placement


def make_want(model: ModelFacts, wish: Wish) -> Want:
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
    return Want(context, slots, minimum, why, pinned_context is not None, fixed_slots)


@dataclass
class Solver:
    """Places one model on one machine under many knobs; each estimate is made once.

    ``knobs`` hold what is settled: KV formats, flash attention, and the user's own placement. ``spills_ffn``: may the
    plan put dense feed-forward parts in main memory by themselves?
    """

    model: ModelFacts
    machine: Machine
    knobs: Knobs
    weight_factor: float = 1.0
    spills_ffn: bool = False
    _costs: dict[tuple[int, int, int], Costs | None] = field(default_factory=dict)

    def reweighted(self, factor: float) -> Solver:
        """The same for a file of ``factor`` times the bytes."""
        return replace(self, weight_factor=factor)

    def costs(self, context: int, slots: int, batch: int) -> Costs | None:
        """Bytes by layer; None where the model's shape is not known well enough."""
        key = (context, slots, batch)
        if key not in self._costs:
            size: dict[str, KnobValue] = {"context_tokens": context, "slots": slots, "batch": batch, "ubatch": batch}
            self._costs[key] = estimate_costs(self.model, {**self.knobs, **size}, gpus=len(self.machine.cards))
        return self._costs[key]

    def place(self, context: int, slots: int, batch: int = LEAST_BATCH) -> Placement | None:
        """The best placement with these; None where nothing fits."""
        costs = self.costs(context, slots, batch)
        if costs is None:
            return None
        own = {name: integer(self.knobs, name) for name in PLACING}
        return place_costs(costs.scaled(self.weight_factor), self.machine, own, spills_ffn=self.spills_ffn)

    @property
    def placed_by_user(self) -> bool:
        """Did the user say what goes where?"""
        return any(integer(self.knobs, name) is not None for name in PLACING)

    def solve(self, want: Want, batch: int = LEAST_BATCH) -> Fit | None:
        """The first of these that fits; None where none does.

        With GPUs: all on them, with the largest context from the wish down to the minimum, then with fewer slots at the
        minimum. Else the minimum with a spill: context would cost more speed. Without GPUs: the largest context down to
        the minimum. Then fewer slots, then less than the minimum. In this order more memory never gives less context.
        """
        if self.machine.cards and not self.placed_by_user:
            if fit := self._largest(want, batch, wholly_on_gpus):
                return fit
            steps = [(want.context if want.fixed_context else want.minimum, slots) for slots in self._slots(want)]
            fit = next((found for step in steps if (found := self._fit(*step, batch))), None)
        else:
            fit = self._largest(want, batch, anywhere)
        return fit or self._below_minimum(want, batch)

    def _largest(self, want: Want, batch: int, good: Callable[[Placement], bool]) -> Fit | None:
        """The largest context with all slots; where not even the minimum fits, the minimum with fewer slots."""
        slots, *fewer = self._slots(want)
        least = want.context if want.fixed_context else want.minimum
        if found := self.largest_context(least, want.context, slots, batch, good):
            return found
        fits = (fit for count in fewer if (fit := self._fit(least, count, batch)) and good(fit.placement))
        return next(fits, None)

    def _below_minimum(self, want: Want, batch: int) -> Fit | None:
        if want.fixed_context:
            return None
        least = min(LEAST_CONTEXT, want.minimum)
        slots = [*self._slots(want)][-1]
        return self.largest_context(least, want.minimum, slots, batch, anywhere)

    @staticmethod
    def _slots(want: Want) -> Iterator[int]:
        count = want.slots
        yield count
        while count > 1 and not want.fixed_slots:
            count //= 2
            yield count

    def _fit(self, context: int, slots: int, batch: int) -> Fit | None:
        placement = self.place(context, slots, batch)
        return None if placement is None else Fit(context, slots, placement)

    def largest_context(
        self, least: int, most: int, slots: int, batch: int, good: Callable[[Placement], bool]
    ) -> Fit | None:
        """The largest context from ``least`` to ``most`` that has a good placement, in steps of 1,024 tokens.

        Memory grows in step with the context, so each guess lies on the line between what is known to fit and what is
        not, and is at most a few steps off.
        """

        found = {most: self._fit(most, slots, batch)}

        def good_fit(context: int) -> Fit | None:
            if context not in found:
                found[context] = self._fit(context, slots, batch)
            fit = found[context]
            return fit if fit and good(fit.placement) else None

        if whole := good_fit(most):
            return whole
        if least >= most or (best := good_fit(least)) is None:
            return None
        low, high = least // _STEP, -(-most // _STEP)
        while high - low > 1:
            guess = self._guess(low * _STEP, high * _STEP, slots, batch)
            # The neighbours settle it where the line is right, the half where it is not.
            for step in (guess, guess + 1, guess - 1, (low + high) // 2):
                if not low < step < high:
                    continue
                if fit := good_fit(step * _STEP):
                    best, low = fit, step
                else:
                    high = step
        return best

    def _guess(self, low: int, high: int, slots: int, batch: int) -> int:
        """Step at which the usable memory would be full, on a line through the two contexts."""
        sizes = []
        for context in (low, high):
            costs = self.costs(max(context, LEAST_CONTEXT), slots, batch)
            if costs is None:
                return 0
            sizes.append(costs.on_cards if self.machine.cards else costs.all_main)
            room = self._room(costs)
        slope = (sizes[1] - sizes[0]) / max(1, high - low)
        return int((low + (room - sizes[0]) / slope) // _STEP) if slope > 0 else 0

    def _room(self, costs: Costs) -> int:
        """What can be filled: of each GPU but the first, buffers and half a layer are lost."""
        if not self.machine.cards:
            return self.machine.main.usable_bytes if self.machine.main else 0
        layer = max(map(sum, zip(costs.layers, costs.experts, costs.cache, strict=True)), default=0)
        lost = (len(self.machine.cards) - 1) * (costs.card + layer // 2)
        return sum(card.usable_bytes for card in self.machine.cards) - lost
