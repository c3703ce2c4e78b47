"""Frequency governor of the processor."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "governor"
_WHY = "a governor that holds the lowest frequency costs most of the speed on a processor"
# Drivers whose own logic chooses the frequency, whatever the two governors that they offer are called (kernel:
# admin-guide/pm/intel_pstate, admin-guide/pm/amd-pstate).
_OWN_LOGIC = frozenset({"intel_pstate", "amd-pstate-epp", "amd_pstate_epp", "amd-pstate"})


def run(facts: Facts) -> Iterator[Finding]:
    """Finds the `powersave` governor on mains.

    With the drivers intel_pstate and amd-pstate it is the healthy standard and still reaches full
    speed; with others it holds the lowest frequency, which is a warning. Where the driver is unknown
    it is a note.
    """
    governor = facts.cpu.governor if facts.cpu else None
    if facts.cpu is None or governor is None or governor.strip() != "powersave":
        return
    if facts.power is not None and facts.power.on_battery:
        return
    driver = facts.cpu.governor_driver
    if driver in _OWN_LOGIC:
        return
    fix = "sudo cpupower frequency-set -g performance"
    seen = evidence(facts, "cpu.governor", governor)
    if driver is None:
        title = (
            "the frequency governor is powersave, which is healthy with intel_pstate and amd-pstate, slow with others"
        )
        yield Finding(_NAME, "note", title, (seen,), fix, _WHY)
        return
    title = f"the frequency governor is powersave, which with {driver} holds the lowest frequency"
    yield Finding(_NAME, "warning", title, (seen, evidence(facts, "cpu.governor_driver", driver)), fix, _WHY)


check = Check(_NAME, "Frequency governor", "warning", True, run)
