from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.simulated import World
from velollm.bench.history import Record, append_result, parse_history, read_history
from velollm.bench.result import BenchResult
from velollm.bench.run import run_bench
from velollm.bench.stats import compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts
from velollm.knobs import KnobValue

FACTS = Facts(os="linux", cpu=CpuFacts(physical_cores=2))
KNOBS: dict[str, dict[str, KnobValue]] = {
    "default": {"threads": 2, "flash_attention": "auto"},
    "tuned": {"threads": 1, "flash_attention": "on"},
}


@pytest.fixture(scope="module")
def result() -> BenchResult:
    world = World()
    arms = [world.arm("default"), world.arm("tuned", decode=60.0)]
    return run_bench(arms, load_workload("chat"), clock=world.clock)


def append(directory: Path, result: BenchResult) -> Record:
    return append_result(directory, result, model="made:1b", backend="embedded", facts=FACTS, knobs=KNOBS)


def test_results_come_back_as_they_were_taken(tmp_path: Path, result: BenchResult) -> None:
    directory = tmp_path / "deep" / "history"
    written = [append(directory, result) for _ in range(3)]
    history = read_history(directory)
    assert history.records == tuple(written)
    assert history.damaged_lines == 0
    assert len({record.id for record in written}) == 3
    record = history.records[0]
    assert record.samples == result.runs
    assert record.knobs == KNOBS
    assert record.facts == {"os": "linux", "cpu": {"physical_cores": 2}, "libraries": {}, "devices": {}, "sources": {}}
    assert compare_arms(record.samples, "default", "tuned", "decode") == result.ratios["decode"]


def test_no_average_is_stored(tmp_path: Path, result: BenchResult) -> None:
    append(tmp_path, result)
    stored = json.loads((tmp_path / "history.jsonl").read_text())
    assert not {"ratio", "ratios", "summary", "estimate"} & set(stored)


def test_time_is_utc(tmp_path: Path, result: BenchResult) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    record = append_result(tmp_path, result, model="m", backend="b", facts=FACTS, knobs=KNOBS, now=now)
    assert record.taken_at == "2026-01-02T03:04:05+00:00"
    assert record.id.startswith("20260102-030405-")


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert read_history(tmp_path).records == ()


@pytest.mark.parametrize("torn_bytes", [1, 20, 200])
def test_a_torn_last_line_costs_only_itself(tmp_path: Path, result: BenchResult, torn_bytes: int) -> None:
    first = append(tmp_path, result)
    append(tmp_path, result)
    path = tmp_path / "history.jsonl"
    os.truncate(path, path.stat().st_size - torn_bytes - 1)
    assert read_history(tmp_path).records == (first,)
    assert read_history(tmp_path).damaged_lines == 1
    third = append(tmp_path, result)
    history = read_history(tmp_path)
    assert history.records == (first, third)
    assert history.damaged_lines == 1


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_is_counted_not_raised(lines: list[bytes]) -> None:
    history = parse_history(lines)
    assert history.records == ()
    assert history.damaged_lines == sum(bool(line.strip()) for line in lines)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path, result: BenchResult) -> None:
    append(tmp_path, result)
    stored = json.loads((tmp_path / "history.jsonl").read_text())
    stored["energy"] = 1
    stored["samples"][0]["joules"] = 2
    assert parse_history([json.dumps(stored).encode()]).records[0].samples == result.runs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path, result: BenchResult) -> None:
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(VeloError) as caught:
        append(tmp_path, result)
    assert "No space left" in caught.value.message
    assert caught.value.hint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on file size")
def test_a_disk_that_fills_half_way_leaves_the_file_as_it_was(tmp_path: Path, result: BenchResult) -> None:
    import resource

    append(tmp_path, result)
    path = tmp_path / "history.jsonl"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(VeloError):
            append(tmp_path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    append(tmp_path, result)
    assert len(read_history(tmp_path).records) == 2


def test_a_directory_in_the_way(tmp_path: Path, result: BenchResult) -> None:
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(VeloError):
        append(tmp_path, result)
    with pytest.raises(VeloError):
        read_history(tmp_path)
