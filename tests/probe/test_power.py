from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.power import read_power, read_thermal
from velollm.probe.source import TextSource

SUPPLY = "/sys/class/power_supply"
CPU = "/sys/devices/system/cpu"


def supply(name: str, **values: object) -> dict[str, str]:
    return {f"{SUPPLY}/{name}/{key}": f"{value}\n" for key, value in values.items()}


def power(*supplies: dict[str, str], **commands: str) -> dict[str, Any]:
    files = {path: text for one in supplies for path, text in one.items()}
    return read_power(TextSource(files, {name.replace("_", " "): text for name, text in commands.items()})).values


MAINS_OFF = supply("ADP1", type="Mains", online=0)
BATTERY = supply(
    "CMB1", type="Battery", status="Discharging", capacity=40, present=1, power_now=7_500_000,
    energy_now=20_000_000, energy_full=45_000_000, energy_full_design=50_000_000,
)  # fmt: skip


def test_on_battery_whatever_the_names_are() -> None:
    assert power(MAINS_OFF, BATTERY) == {
        "on_battery": True, "status": "Discharging", "battery_percent": 40.0,
        "battery_health_percent": 90.0, "draw_watts": 7.5,
    }  # fmt: skip


def test_a_battery_that_charges_is_on_mains() -> None:
    charging = supply("BAT0", type="Battery", status="Charging", capacity=40, power_now=5_000_000)
    assert power(supply("AC", type="Mains", online=1), charging) == {
        "on_battery": False, "status": "Charging", "battery_percent": 40.0
    }  # fmt: skip
    assert power(charging)["on_battery"] is False
    assert power(supply("ucsi", type="USB", online=1), BATTERY)["on_battery"] is False


def test_the_battery_of_a_mouse_is_not_the_machines() -> None:
    assert power(supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=9)) == {}


def test_charge_and_current_instead_of_energy_and_power() -> None:
    values = power(
        supply("BAT1", type="Battery", status="Discharging", current_now=-1_000_000, voltage_now=12_000_000,
               charge_now=1000, charge_full=4000, charge_full_design=5000)
    )  # fmt: skip
    assert (values["draw_watts"], values["battery_percent"], values["battery_health_percent"]) == (12.0, 25.0, 80.0)


def test_two_batteries_are_weighed_by_their_size() -> None:
    first = supply("BAT0", type="Battery", status="Unknown", capacity=90, energy_now=9, energy_full=10)
    second = supply("BAT1", type="Battery", status="Discharging", capacity=0, energy_now=0, energy_full=90)
    values = power(MAINS_OFF, first, second)
    assert (values["battery_percent"], values["on_battery"], values["status"]) == (9.0, True, "Discharging")


def test_a_status_nobody_knows_is_no_answer() -> None:
    assert "on_battery" not in power(supply("BAT0", type="Battery", status="Unknown"))


def test_mac_and_windows() -> None:
    text = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t74%; discharging; 4:30 remaining\n"
    assert power(pmset_batt=text) == {"on_battery": True, "battery_percent": 74.0, "status": "Discharging"}
    cim = read_power(
        TextSource(commands={"Get-CimInstance Win32_Battery": "BatteryStatus : 2\nEstimatedChargeRemaining : 99"})
    )
    assert cim.values == {"on_battery": False, "battery_percent": 99.0}


@pytest.mark.parametrize(("counts", "throttled"), [([0, 0], False), ([0, 3], True), ([], None)])
def test_throttle_counters(counts: list[int], throttled: bool | None) -> None:
    names = ("core_throttle_count", "package_throttle_count")
    files = {f"{CPU}/cpu0/thermal_throttle/{n}": f"{c}\n" for n, c in zip(names, counts, strict=False)}
    assert read_thermal(TextSource(files)).get("throttled_since_boot") is throttled


@pytest.mark.parametrize(("word", "throttled"), [("0x0", False), ("0x50000", True), ("0x10000", False)])
def test_raspberry_pi(word: str, throttled: bool) -> None:
    fields = read_thermal(TextSource(commands={"vcgencmd get_throttled": f"throttled={word}\n"}))
    assert fields.get("throttled_since_boot") is throttled


@given(st.dictionaries(st.sampled_from(sorted(BATTERY)), st.text(max_size=30)), st.text(max_size=80))
def test_no_text_raises(files: dict[str, str], text: str) -> None:
    read_power(TextSource(BATTERY | files, {"pmset -g batt": text, "Get-CimInstance Win32_Battery": text}))


def test_power_modes() -> None:
    assert read_power(TextSource({"/sys/firmware/acpi/platform_profile": "low-power\n"})).get("profile") == "low-power"
    windows = "Power Scheme GUID: a1841308-3541-4fab-bc81-f71556f20b4a  (Power saver)"
    assert read_power(TextSource(commands={"powercfg /getactivescheme": windows})).get("profile") == "low-power"
    own = windows.replace("a1841308", "00000000")
    assert read_power(TextSource(commands={"powercfg /getactivescheme": own})).get("profile") is None
    assert (
        read_power(TextSource(commands={"pmset -g": " lowpowermode         1\n sleep 1\n"})).get("profile")
        == "low-power"
    )
    assert read_power(TextSource()).get("profile") is None
