"""Slowed down by heat."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "thermal-throttling"
_WHY = "a hot processor runs slower, and long answers are what heats it"

_FIX = "free the air vents and fans; then measure again with `velollm bench`"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a GPU that heat or lack of power slows down now, and a processor that heat has slowed since the start.

    The processor's counter tells nothing about this moment; but long answers are what brings heat back.
    """
    for place, gpu in enumerate(facts.gpus or ()):
        if gpu.throttle_reasons:
            title = f"{gpu.name or 'the GPU'} is slowed down at this moment: {', '.join(gpu.throttle_reasons)}"
            seen = (evidence(facts, f"gpus.{place}.throttle_reasons", ", ".join(gpu.throttle_reasons)),)
            yield Finding(_NAME, "warning", title, seen, _FIX, _WHY)
    if facts.thermal is None or facts.thermal.throttled_since_boot is not True:
        return
    yield Finding(
        _NAME,
        "warning",
        "heat has slowed the processor down since the machine started",
        (evidence(facts, "thermal.throttled_since_boot", "yes"),),
        _FIX,
        _WHY,
    )


check = Check(_NAME, "Slowed down by heat", "warning", False, run)
