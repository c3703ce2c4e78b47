"""Swap in use while memory is tight."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts
from velollm.units import MIB, render_bytes

_NAME = "swap"
_WHY = "weights are read back from the disk in the middle of an answer"
_TIGHT_SHARE = 0.15
_USED_BYTES = 256 * MIB


def run(facts: Facts) -> Iterator[Finding]:
    """Finds more than 256 MiB of swap in use while less than 15% of memory is available.

    Swap alone says nothing: pages that slept for days lie there on any healthy machine. With tight
    memory too, weights will be read back from disk in the middle of an answer.
    """
    memory = facts.memory
    if memory is None or memory.available_bytes is None or not memory.total_bytes:
        return
    if memory.swap_total_bytes is None or memory.swap_free_bytes is None:
        return
    used = memory.swap_total_bytes - memory.swap_free_bytes
    if used < _USED_BYTES or memory.available_bytes >= _TIGHT_SHARE * memory.total_bytes:
        return
    yield Finding(
        _NAME,
        "warning",
        f"{render_bytes(used)} are swapped out and memory is tight",
        (
            evidence(facts, "memory.swap_free_bytes", f"{render_bytes(used)} used"),
            evidence(facts, "memory.available_bytes", render_bytes(memory.available_bytes)),
        ),
        "end programs that hold memory, or `velollm optimize --profile low-memory`",
        _WHY,
    )


check = Check(_NAME, "Swap in use while memory is tight", "warning", False, run)
