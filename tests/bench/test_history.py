from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.simulated import World
from velollm.bench.history import (
    Record,
    append_record,
    append_records,
    machine_key,
    make_record,
    parse_old_line,
    read_history,
    result_of,
)
from velollm.bench.result import BenchResult
from velollm.bench.run import run_bench
from velollm.bench.stats import compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import UsageError, VeloError
from velollm.facts import CpuFacts, Facts, GpuFacts, MemoryFacts, ServerFacts
from velollm.knobs import KnobValue

FACTS = Facts(
    os="linux",
    cpu=CpuFacts(model_name="Ryzen 5", physical_cores=2, usable_cores=4),
    memory=MemoryFacts(total_bytes=34_000_000_000),
)
KNOBS: dict[str, dict[str, KnobValue]] = {
    "default": {"threads": 2, "flash_attention": "auto"},
    "tuned": {"threads": 1, "flash_attention": "on"},
}


@pytest.fixture(scope="module")
def result() -> BenchResult:
    world = World()
    arms = [world.arm("default"), world.arm("tuned", decode=60.0)]
    return run_bench(arms, load_workload("chat"), clock=world.clock)


def record_of(result: BenchResult, now: datetime | None = None) -> Record:
    return make_record(
        result,
        model="made:1b",
        backend="embedded",
        facts=FACTS,
        knobs=KNOBS,
        profile="chat",
        engine_version="1.2.3",
        digests={"default": "sha256-0", "tuned": "sha256-0"},
        now=now,
    )


def append(directory: Path, result: BenchResult, now: datetime | None = None) -> Record:
    record = record_of(result, now)
    append_record(directory, record)
    return record


def test_results_come_back_as_they_were_taken(tmp_path: Path, result: BenchResult) -> None:
    directory = tmp_path / "deep" / "history"
    written = [append(directory, result, datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2, 3)]
    history = read_history(directory)
    assert history.records == tuple(written)
    assert history.damaged == 0
    assert len({record.id for record in written}) == 3
    record = history.records[0]
    assert record.samples == result.runs
    assert record.knobs == KNOBS
    assert record.machine == "Ryzen 5, 4 threads, 32 GiB"
    assert Facts.model_validate(record.facts) == FACTS
    assert compare_arms(record.samples, "default", "tuned", "decode") == result.ratios["decode"]
    assert read_history(directory, newest=2).records == tuple(written[1:])


def test_a_comparison_is_made_of_its_record_again(tmp_path: Path, result: BenchResult) -> None:
    append(tmp_path, result)
    (record,) = read_history(tmp_path).records
    assert result_of(record) == result


def test_no_average_is_stored(result: BenchResult) -> None:
    assert not {"ratio", "ratios", "summary", "estimate"} & set(record_of(result).model_dump())


def test_time_is_utc(result: BenchResult) -> None:
    record = record_of(result, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert record.taken_at == "2026-01-02T03:04:05+00:00"
    assert record.id.startswith("20260102-030405-")


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert read_history(tmp_path).records == ()
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_found_by_the_beginning_of_its_id(tmp_path: Path, result: BenchResult) -> None:
    with pytest.raises(UsageError, match="no result yet"):
        read_history(tmp_path).find("last")
    first, second = (append(tmp_path, result, datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2))
    history = read_history(tmp_path)
    assert history.find("20260101") == first
    assert history.find(second.id) == history.find("last") == second
    with pytest.raises(UsageError, match="several results"):
        history.find("202601")
    for name in ("2027", ""):
        with pytest.raises(UsageError, match="no result"):
            history.find(name)


def test_imported_results_stand_apart(tmp_path: Path, result: BenchResult) -> None:
    own = append(tmp_path, result)
    other = record_of(result, datetime(2030, 1, 1, tzinfo=UTC)).model_copy(update={"origin": "imported"})
    assert append_records(tmp_path, [other, own])[0] == (other.id,)
    history = read_history(tmp_path)
    assert (history.records, history.imported) == ((own,), (other,))
    assert history.all == (own, other)
    assert history.find("last") == own
    assert read_history(tmp_path, newest=1).records == (own,)


def test_machines_are_told_apart_by_what_makes_them_fast() -> None:
    gpu = GpuFacts(vendor="nvidia", name="RTX 3060", vram_bytes=12 << 30)
    assert machine_key(FACTS.model_copy(update={"gpus": (gpu,)})) == "Ryzen 5, 4 threads, 32 GiB, RTX 3060 12 GiB"
    assert machine_key(Facts()) is None
    assert machine_key(Facts(cpu=FACTS.cpu)) is None


# The history as it was before: one record a line.

OLD = Path("history.jsonl")


def old_line(result: BenchResult, day: int = 1, **facts: object) -> bytes:
    record = record_of(result, datetime(2025, 1, day, tzinfo=UTC))
    new = ("machine", "digests", "engine_version", "origin", "profile", "tuned", "sizes", "elapsed_s", "budget_s")
    fields = record.model_dump(mode="json", exclude={*new, "answers", "conditions", "elsewhere"})
    return (
        Record.model_validate({**fields, "schema_version": 1, "facts": {**fields["facts"], **facts}})
        .model_dump_json(exclude={*new, "answers", "conditions", "elsewhere"})
        .encode()
    )


def test_an_old_history_is_taken_over_once_and_kept(tmp_path: Path, result: BenchResult) -> None:
    old = tmp_path / OLD
    text = old_line(result, 1) + b"\n" + old_line(result, 2) + b"\n" + old_line(result, 3)[:-9]
    old.write_bytes(text)
    before = read_history(tmp_path)
    assert [record.taken_at[:10] for record in before.records] == ["2025-01-01", "2025-01-02"]
    assert before.damaged == 1
    assert before.records[0].machine == "Ryzen 5, 4 threads, 32 GiB"
    assert result_of(before.records[0]).ratios == result.ratios
    assert [path.name for path in tmp_path.iterdir()] == [old.name]

    record = record_of(result)
    (note,) = append_record(tmp_path, record)
    assert ": 2 (1 could not be read); it is kept as history.jsonl.imported." in note
    assert not old.exists()
    assert (tmp_path / "history.jsonl.imported").read_bytes() == text
    assert read_history(tmp_path).records == (*before.records, record)
    assert append_record(tmp_path, record_of(result)) == ()

    # An older VeloLLM ran meanwhile.
    old.write_bytes(old_line(result, 4) + b"\n")
    append_record(tmp_path, record_of(result))
    assert (tmp_path / "history.jsonl.imported").read_bytes() == text
    assert (tmp_path / "history.jsonl.imported-2").exists()
    assert len(read_history(tmp_path).records) == 6


def test_a_take_over_that_was_killed_before_its_end_counts_nothing_twice(tmp_path: Path, result: BenchResult) -> None:
    (tmp_path / OLD).write_bytes(old_line(result) + b"\n")
    append_record(tmp_path, record_of(result))
    (tmp_path / "history.jsonl.imported").rename(tmp_path / OLD)
    assert len(read_history(tmp_path).records) == 2
    append_record(tmp_path, record_of(result))
    assert len(read_history(tmp_path).records) == 3


def test_what_an_old_record_lacks_is_made_of_its_facts(result: BenchResult) -> None:
    ollama = {"engine": "ollama", "version": "0.32.1"}
    line = old_line(result, server=ollama).replace(b'"embedded"', b'"ollama"')
    found = parse_old_line(line)
    assert found is not None
    assert (found.engine_version, found.machine) == ("0.32.1", "Ryzen 5, 4 threads, 32 GiB")
    found = parse_old_line(old_line(result, server={**ollama, "remote": True}))
    assert found is not None
    assert (found.machine, found.elsewhere, found.engine_version) == (None, True, None)
    found = parse_old_line(old_line(result, server={"unheard_of": 1}))
    assert found is not None
    assert found.machine is None


@given(st.binary(max_size=60))
def test_garbage_is_no_record(line: bytes) -> None:
    assert parse_old_line(line) is None


def test_fields_of_a_later_version_are_passed_over(result: BenchResult) -> None:
    record = record_of(result).model_dump(mode="json")
    record["energy"] = 1
    record["samples"][0]["joules"] = 2
    assert Record.model_validate(record).samples == result.runs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on file size")
def test_a_disk_that_fills_half_way_leaves_the_history_as_it_was(tmp_path: Path, result: BenchResult) -> None:
    import resource

    append(tmp_path, result)
    path = tmp_path / "history.db"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(VeloError) as caught:
            append(tmp_path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write the history" in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    append(tmp_path, result)
    assert len(read_history(tmp_path).records) == 2


def test_a_directory_in_the_way(tmp_path: Path, result: BenchResult) -> None:
    (tmp_path / "history.db").mkdir()
    with pytest.raises(VeloError):
        append(tmp_path, result)
    with pytest.raises(VeloError):
        read_history(tmp_path)


def test_only_the_owner_may_read_it(tmp_path: Path, result: BenchResult) -> None:
    append(tmp_path, result)
    if os.name == "posix":
        assert (tmp_path / "history.db").stat().st_mode & 0o777 == 0o600


def test_where_the_server_was_is_not_guessed(result: BenchResult) -> None:
    server = ServerFacts(engine="ollama", version="0.33.0")
    record = make_record(
        result,
        model="m",
        backend="openai",
        facts=FACTS.model_copy(update={"server": server}),
        knobs=KNOBS,
        elsewhere=True,
    )
    assert (record.machine, record.elsewhere, record.engine_version) == (None, True, None)
