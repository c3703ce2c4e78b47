"""Slowed down by heat."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "thermal-throttling"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a processor that heat has slowed down since the machine started.

    The counter tells nothing about this moment; but long answers are what brings heat back.
    """
    if facts.thermal is None or facts.thermal.throttled_since_boot is not True:
        return
    yield Finding(
        _NAME,
        "warning",
        "heat has slowed the processor down since the machine started",
        (evidence(facts, "thermal.throttled_since_boot", "yes"),),
        "free the air vents and fans; then measure again with `velollm bench`",
    )


check = Check(_NAME, "Slowed down by heat", "warning", False, run)
