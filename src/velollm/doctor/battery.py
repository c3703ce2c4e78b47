"""Battery or mains."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "battery"
_WHY = "speed is held down, and what is measured now is not true on mains"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a machine on battery: it runs slower, and what is measured holds for the battery only."""
    power = facts.power
    if power is None or power.on_battery is not True:
        return
    seen = [evidence(facts, "power.on_battery", power.status or "on battery")]
    if power.battery_percent is not None:
        seen.append(evidence(facts, "power.battery_percent", f"{power.battery_percent:g}%"))
    if power.draw_watts is not None:
        seen.append(evidence(facts, "power.draw_watts", f"{power.draw_watts:.1f} W"))
    title = "the machine runs on battery: speed is held down, and measurements hold for the battery only"
    yield Finding(_NAME, "warning", title, tuple(seen), "plug in the charger before you measure", _WHY)


check = Check(_NAME, "Battery or mains", "warning", False, run)
