"""What else goes on at the machine while a comparison runs, and what of it spoils the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from velollm.units import render_bytes

_BUSY_CORES = 0.25  # a quarter of a core, over a whole round, is more than a desktop at rest takes
_SWAPPED_BYTES = 16 << 20
SPREAD_LIMIT = 0.10
"""Rounds of one arm that differ by more than this share make the result unstable."""


@dataclass(frozen=True)
class Energy:
    """A counter of joules, and what it counts."""

    joules: float
    basis: str


@dataclass(frozen=True)
class Conditions:
    """One look at the machine. None: it does not tell.

    ``busy_cores``: cores' worth of time that other programs took since the look before. ``swapped_bytes`` were moved
    to and from the disk since the machine started, ``throttles`` is how often a core was slowed down for heat,
    ``gpu_throttled``: a GPU is slowed down now, for heat or power.
    """

    busy_cores: float | None = None
    swapped_bytes: int | None = None
    throttles: int | None = None
    gpu_throttled: bool | None = None
    on_battery: bool | None = None


class Machine(Protocol):
    """The machine that the servers run on."""

    def energy(self) -> Energy | None:
        """The energy taken so far; None where nothing counts it."""

    def gpu_bytes(self, pids: Sequence[int]) -> int | None:
        """What these processes hold on GPUs; None where that cannot be told."""

    def look(self) -> Conditions:
        """How it is now."""


def note_conditions(looks: Sequence[Conditions]) -> list[str]:
    """What disturbed a comparison, and what to do about it."""
    notes = []
    busy = [look.busy_cores for look in looks if look.busy_cores is not None]
    if (disturbed := sum(cores > _BUSY_CORES for cores in busy)) > 0:
        notes.append(
            f"other programs took up to {max(busy):.1f} cores in {disturbed} of {len(busy)} rounds: "
            "close them and measure again, or read the figures as those of a busy machine"
        )
    swapped = _growth([look.swapped_bytes for look in looks])
    if swapped > _SWAPPED_BYTES:
        notes.append(
            f"the machine swapped {render_bytes(swapped)} meanwhile: the models do not fit in memory, "
            "take a smaller one or a smaller context"
        )
    if throttles := _growth([look.throttles for look in looks]):
        notes.append(f"the processor was slowed down for heat {throttles} times: let it cool, and measure again")
    if any(look.gpu_throttled for look in looks):
        notes.append("a GPU was slowed down for heat or power: let it cool, or raise its power limit")
    if any(look.on_battery for look in looks):
        notes.append("the machine runs on battery, which slows it down: plug it in and measure again")
    return notes


def _growth(values: Sequence[int | None]) -> int:
    known = [value for value in values if value is not None]
    return known[-1] - known[0] if known else 0
