"""Battery or mains, and heat."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from velollm.probe.fields import Fields
from velollm.probe.source import Source
from velollm.probe.texts import parse_blocks, parse_int, read_command, read_value

_SUPPLY_DIR = "/sys/class/power_supply"
_PROFILE = "/sys/firmware/acpi/platform_profile"
# Microsoft, "Power policy settings": power saver, balanced, high performance, ultimate performance.
_SCHEMES = {
    "a1841308-3541-4fab-bc81-f71556f20b4a": "low-power",
    "381b4222-f694-41f0-9685-ff5bb260df2e": "balanced",
    "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c": "performance",
    "e9a42b02-d5df-448d-aa00-03f14749eb61": "performance",
}
_THROTTLE = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"
# `vcgencmd get_throttled` of a Raspberry Pi: bit 18 throttling has occurred, bit 19 soft temperature
# limit has occurred (raspberrypi.com documentation, "vcgencmd").
_PI_THROTTLED = 0b11 << 18


@dataclass(frozen=True)
class Supply:
    """One entry of `/sys/class/power_supply`: its directory and the values of its files."""

    path: str
    values: dict[str, str]

    def number(self, name: str) -> int | None:
        return parse_int(self.values.get(name))


_SUPPLY_FILES = (
    "type", "scope", "online", "status", "present", "capacity", "power_now", "current_now", "voltage_now",
    "energy_now", "energy_full", "energy_full_design", "charge_now", "charge_full", "charge_full_design",
)  # fmt: skip


def read_power(source: Source) -> Fields:
    """Battery and mains, by their ``type`` files: names such as AC or BAT0 differ from machine to machine."""
    fields = Fields()
    supplies = _read_supplies(source)
    batteries = [s for s in supplies if s.values.get("type") == "Battery" and s.values.get("scope") != "Device"]
    batteries = [s for s in batteries if s.values.get("present") != "0"]
    mains = [s for s in supplies if s.values.get("type") not in ("Battery", None) and s.number("online") is not None]
    _put_on_battery(source, batteries, mains, fields)
    if batteries:
        _put_batteries(batteries, fields)
    _put_pmset(source, fields)
    _put_cim_battery(source, fields)
    _put_profile(source, fields)
    return fields


def read_thermal(source: Source) -> Fields:
    """Heat: the counters count since boot, so they tell of the past, not of this moment."""
    fields = Fields()
    paths = source.glob(f"{_THROTTLE}/*_throttle_count")
    counts = [count for path in paths if (count := parse_int(source.read(path))) is not None]
    if counts:
        place = "/sys/devices/system/cpu/cpu*/thermal_throttle"
        fields.put("throttled_since_boot", any(count > 0 for count in counts), place)
    match = re.search(r"throttled=0x([0-9a-fA-F]{1,8})\b", read_command(source, "vcgencmd", "get_throttled") or "")
    if match is not None:
        fields.put("throttled_since_boot", bool(int(match.group(1), 16) & _PI_THROTTLED), "vcgencmd get_throttled")
    return fields


def _read_supplies(source: Source) -> list[Supply]:
    folders = sorted({path.rsplit("/", 1)[0] for path in source.glob(f"{_SUPPLY_DIR}/*/type")})
    return [
        Supply(folder, {n: v for n in _SUPPLY_FILES if (v := read_value(source, f"{folder}/{n}")) is not None})
        for folder in folders
    ]


def _put_on_battery(source: Source, batteries: list[Supply], mains: list[Supply], fields: Fields) -> None:
    online = next((s for s in mains if (s.number("online") or 0) > 0), None)
    if online is not None:
        fields.put("on_battery", False, f"{online.path}/online")
        return
    states = {s.values.get("status") for s in batteries}
    if "Discharging" in states:
        fields.put("on_battery", True, f"{batteries[0].path}/status")
    elif states & {"Charging", "Full", "Not charging"}:
        fields.put("on_battery", False, f"{batteries[0].path}/status")
    elif not batteries and source.glob(_SUPPLY_DIR):
        # The kernel lists power supplies here, and none of them is a battery.
        fields.put("on_battery", False, _SUPPLY_DIR)


def _put_batteries(batteries: list[Supply], fields: Fields) -> None:
    place = batteries[0].path
    statuses = [s.values["status"] for s in batteries if "status" in s.values]
    if statuses:
        fields.put("status", "Discharging" if "Discharging" in statuses else statuses[0], f"{place}/status")
    capacity = batteries[0].number("capacity") if len(batteries) == 1 else None
    fields.put("battery_percent", float(capacity) if capacity is not None else None, f"{place}/capacity")
    for kind in ("energy", "charge"):
        fields.put("battery_percent", _percent(batteries, f"{kind}_now", f"{kind}_full"), f"{place}/{kind}_now")
        health = _percent(batteries, f"{kind}_full", f"{kind}_full_design")
        fields.put("battery_health_percent", health, f"{place}/{kind}_full")
    draws = [draw for s in batteries if (draw := _draw_watts(s)) is not None]
    if len(draws) == len(batteries) and "Discharging" in statuses:
        fields.put("draw_watts", round(sum(draws), 6), f"{place}/power_now")


def _percent(batteries: list[Supply], part: str, whole: str) -> float | None:
    parts, wholes = [s.number(part) for s in batteries], [s.number(whole) for s in batteries]
    if any(value is None for value in (*parts, *wholes)):
        return None
    total = sum(value or 0 for value in wholes)
    return round(100.0 * sum(value or 0 for value in parts) / total, 1) if total > 0 else None


def _draw_watts(supply: Supply) -> float | None:
    """Watts; the files are in microwatts, microamperes and microvolts (kernel: ABI/testing/sysfs-class-power)."""
    power = supply.number("power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = supply.number("current_now"), supply.number("voltage_now")
    return None if current is None or voltage is None else abs(current) * voltage / 1e12


def _put_pmset(source: Source, fields: Fields) -> None:
    """macOS: `pmset -g batt` begins with ``Now drawing from 'Battery Power'``."""
    if source.live and fields:
        return
    text = read_command(source, "pmset", "-g", "batt") or ""
    drawing = re.search(r"Now drawing from '(\w{1,16}) Power'", text)
    if drawing is None:
        return
    fields.put("on_battery", drawing.group(1) == "Battery", "pmset -g batt")
    charge = re.search(r"\t(\d{1,3})%; ([A-Za-z ]{1,32});", text)
    if charge is not None:
        fields.put("battery_percent", float(charge.group(1)), "pmset -g batt")
        fields.put("status", charge.group(2).strip().capitalize(), "pmset -g batt")


def _put_profile(source: Source, fields: Fields) -> None:
    """The machine's power mode: Linux firmware's, Windows' active scheme, macOS' low power mode."""
    fields.put("profile", read_value(source, _PROFILE), _PROFILE)
    if source.live and sys.platform == "linux":
        return
    scheme = re.search(r"GUID: ([0-9a-f-]{36})", read_command(source, "powercfg", "/getactivescheme") or "", re.I)
    fields.put("profile", _SCHEMES.get(scheme.group(1).lower()) if scheme else None, "powercfg /getactivescheme")
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)\s*$", read_command(source, "pmset", "-g") or "", re.M)
    fields.put("profile", {"0": "balanced", "1": "low-power", "2": "performance"}.get(low.group(1)) if low else None, "pmset -g")  # fmt: skip  # noqa: E501


def _put_cim_battery(source: Source, fields: Fields) -> None:
    """Windows, captured: BatteryStatus 1 is discharging, 2 is on mains (Win32_Battery class)."""
    text = None if source.live else source.run(["Get-CimInstance", "Win32_Battery"])
    for block in parse_blocks(text or ""):
        state, percent = parse_int(block.get("BatteryStatus")), parse_int(block.get("EstimatedChargeRemaining"))
        fields.put("on_battery", {1: True, 2: False}.get(state or 0), "Win32_Battery")
        fields.put("battery_percent", float(percent) if percent is not None else None, "Win32_Battery")
