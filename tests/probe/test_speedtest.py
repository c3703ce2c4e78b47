"""The short measurement of this machine: its numbers are kept, and taken again on another machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from velollm.facts import CpuFacts, Facts, MemoryFacts
from velollm.probe import speedtest
from velollm.probe.speedtest import MachineSpeed, machine_key, machine_speed, measure_machine_speed, read_machine_speed
from velollm.units import GIB, MIB

SMALL = Facts(
    cpu=CpuFacts(model_name="A Processor", usable_physical_cores=2), memory=MemoryFacts(available_bytes=512 * MIB)
)
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedtest, "_READ_S", 0.0)
    monkeypatch.setattr(speedtest, "_MULTIPLY_S", 0.0)
    monkeypatch.setattr(speedtest, "_OWN_SHARE", 0.0)


def test_it_reads_and_multiplies_within_the_memory_that_is_free() -> None:
    found = measure_machine_speed(SMALL, now=lambda: NOW)
    assert found is not None
    assert (found.threads, found.block_bytes, found.taken_at) == (2, 64 * MIB, "2026-11-25T12:00:00+00:00")
    assert found.read_bytes_per_s > 10**6
    assert found.multiply_flops > 10**6


def test_too_little_memory_is_not_measured() -> None:
    assert measure_machine_speed(SMALL.model_copy(update={"memory": MemoryFacts(available_bytes=10 * MIB)})) is None


def test_it_is_kept_and_taken_again_on_another_processor(tmp_path: Path) -> None:
    first = machine_speed(tmp_path, SMALL, now=lambda: NOW)
    assert first is not None
    assert machine_speed(tmp_path, SMALL) == first
    assert read_machine_speed(tmp_path) == first
    other = SMALL.model_copy(update={"cpu": CpuFacts(model_name="Another", usable_physical_cores=1)})
    second = machine_speed(tmp_path, other)
    assert second is not None
    assert second.machine == machine_key(other) == "Another, 1 threads"
    assert [path.name for path in tmp_path.iterdir()] == ["machine-speed.json"]


def test_a_disturbed_measurement_is_used_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedtest, "_OWN_SHARE", 2.0)
    found = machine_speed(tmp_path, SMALL)
    assert found is not None
    assert found.disturbed
    assert read_machine_speed(tmp_path) is None


def test_a_damaged_file_is_measured_over(tmp_path: Path) -> None:
    (tmp_path / "machine-speed.json").write_text("{", encoding="utf-8")
    assert read_machine_speed(tmp_path) is None
    found = machine_speed(tmp_path, SMALL)
    assert found is not None
    assert read_machine_speed(tmp_path) == found


def test_a_place_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert isinstance(machine_speed(blocked / "data", SMALL), MachineSpeed)


def test_large_memory_is_measured_with_half_a_gibibyte_at_most() -> None:
    assert speedtest._BLOCK_BYTES == GIB // 2
