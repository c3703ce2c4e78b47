"""Arms from files, and what `velollm bench` makes of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from velollm.autopilot.measuring import read_arm
from velollm.autopilot.meter import MachineMeter, read_rapl_joules, read_swapped_bytes, read_throttles
from velollm.errors import EXIT_USAGE, VeloError
from velollm.knobs import KNOBS
from velollm.probe.source import TextSource

RAPL = "/sys/class/powercap/intel-rapl:"


def test_an_arm_is_a_file_of_knobs(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("threads: 4\nflash_attention: on\n", encoding="utf-8")
    assert read_arm(path, frozenset(KNOBS)) == {"threads": 4, "flash_attention": "on"}
    path = tmp_path / "wide.json"
    path.write_text('{"batch": 1024}', encoding="utf-8")
    assert read_arm(path, frozenset(KNOBS)) == {"batch": 1024}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no knobs"),
        ("- threads", "holds no knobs"),
        ("speed: 9", "'speed', which is no knob"),
        ("threads: many", "threads"),
        ("keep_alive_s: 5", "'keep_alive_s', which is no knob of this backend"),
        ("threads: [", "no YAML"),
        ("\x00", "no YAML"),
    ],
)
def test_a_wrong_arm_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VeloError) as caught:
        read_arm(path, frozenset({"threads", "batch"}))
    assert words in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.hint


def test_an_arm_that_is_not_there_names_the_arms(tmp_path: Path) -> None:
    with pytest.raises(VeloError) as caught:
        read_arm(tmp_path / "none.yaml", frozenset(KNOBS))
    assert "tuned" in caught.value.hint


def test_energy_is_that_of_all_packages_or_unknown() -> None:
    files = {
        f"{RAPL}0/name": "package-0\n",
        f"{RAPL}0/energy_uj": "2500000\n",
        f"{RAPL}1/name": "package-1\n",
        f"{RAPL}1/energy_uj": "500000\n",
        f"{RAPL}2/name": "psys\n",
        f"{RAPL}2/energy_uj": "9000000\n",
    }
    assert read_rapl_joules(TextSource(files)) == 3.0
    del files[f"{RAPL}1/energy_uj"]  # only root may read it
    assert read_rapl_joules(TextSource(files)) is None
    assert read_rapl_joules(TextSource()) is None


def test_swap_and_heat_are_counted_since_the_start() -> None:
    core = "/sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    source = TextSource({"/proc/vmstat": "pswpin 3\npswpout 4\n", core.format(0): "2\n", core.format(1): "5\n"})
    assert read_throttles(source) == 7
    swapped = read_swapped_bytes(source)
    assert swapped is not None
    assert swapped % 7 == 0
    assert read_throttles(TextSource()) is None
    assert read_swapped_bytes(TextSource()) is None


class OldNvml:
    """A library whose driver is gone."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        raise self.NVMLError


class Nvml(OldNvml):
    """Two GPUs; the second one counts no energy."""

    def nvmlInit(self) -> None:  # noqa: N802
        return

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:  # noqa: N802
        if gpu == 1:
            raise self.NVMLError
        return 4500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:  # noqa: N802
        return 0x40 if gpu == 0 else 0x4


def test_energy_and_heat_of_gpus() -> None:
    meter = MachineMeter(source=TextSource(), nvml=Nvml())
    found = meter.energy()
    assert found is not None
    assert (found.joules, found.basis) == (4.5, "GPU (NVML)")
    assert meter.look().gpu_throttled is True
    assert meter.gpu_bytes([]) is None


def test_a_machine_that_tells_nothing_is_unknown() -> None:
    meter = MachineMeter(source=TextSource(), nvml=OldNvml())
    assert meter.energy() is None
    assert meter.gpu_bytes([1]) is None
    look = MachineMeter(own_servers=False, source=TextSource(), nvml=OldNvml()).look()
    assert (look.swapped_bytes, look.throttles, look.gpu_throttled, look.busy_cores) == (None, None, None, None)
