"""Power mode of the machine."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "power-mode"
_WHY = "the processor is held below its speed, on mains too"
_SLOW_PROFILES = frozenset({"low-power", "quiet", "cool"})  # kernel: ABI/testing/sysfs-platform_profile
_FIXES = {
    "windows": "powercfg /setactive SCHEME_BALANCED",
    "macos": "System Settings, Battery: Low Power Mode: Never",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a machine that is set to save power although it runs on mains.

    The power mode of the firmware (Linux), the active scheme (Windows), Low Power Mode (macOS), and the
    preference that the processor's own governor was given. On battery `battery` tells it.
    """
    power = facts.power
    if power is not None and power.on_battery:
        return
    if power is not None and power.profile in _SLOW_PROFILES:
        fix = _FIXES.get(facts.os or "", "powerprofilesctl set balanced")
        title = f"the machine is in its power mode '{power.profile}'"
        seen = (evidence(facts, "power.profile", power.profile),)
        yield Finding(_NAME, "warning", title, seen, fix, _WHY)
    elif facts.cpu is not None and facts.cpu.energy_preference == "power":
        seen = (evidence(facts, "cpu.energy_preference", "power"),)
        fix = "echo balance_performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference"
        yield Finding(_NAME, "warning", "the processor is told to prefer saving power to speed", seen, fix, _WHY)


check = Check(_NAME, "Power mode", "warning", True, run)
