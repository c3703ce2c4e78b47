"""Frequency governor of the processor."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "governor"


def run(facts: Facts) -> Iterator[Finding]:
    """Notes the `powersave` governor on mains.

    With the drivers intel_pstate and amd-pstate it is the healthy standard and still reaches full
    speed, so it is no more than a note; with other drivers it holds the lowest frequency.
    """
    governor = facts.cpu.governor if facts.cpu else None
    if governor is None or governor.strip() != "powersave":
        return
    if facts.power is not None and facts.power.on_battery:
        return
    title = "the frequency governor is powersave, which is healthy with intel_pstate and amd-pstate, slow with others"
    yield Finding(
        _NAME, "note", title, (evidence(facts, "cpu.governor", governor),), "sudo cpupower frequency-set -g performance"
    )


check = Check(_NAME, "Frequency governor", "note", True, run)
