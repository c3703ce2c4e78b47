from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.crash import META, count_calls
from tests.ordinary import ordinary_user, public_dir
from velollm.errors import VeloError
from velollm.journal import Flight, Journal, parse_flight
from velollm.targets.base import ABSENT, State

ADDRESS = {"kind": "file", "path": "/x", "real": "/x"}
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def make_flight(directory: Path, at: datetime = NOON) -> tuple[Journal, str]:
    journal = Journal(directory, clock=lambda: at)
    with journal.lock():
        flight_id = journal.begin(META)
        journal.before(flight_id, 0, ADDRESS, "x", State(b"a\xff", 0o640, 1, 2), State(b"b", 0o640, 1, 2))
        journal.before(flight_id, 1, ADDRESS, "y", State(None, missing_dirs=("/n",)), State(b"c"))
        journal.reserve(flight_id, 2)
    return journal, flight_id


def file_of(journal: Journal, flight_id: str) -> Path:
    return journal.directory / f"{flight_id}.jsonl"


def test_no_journal_is_no_flights_and_makes_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal").read_flights() == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path / "deep" / "journal")
    flight = Journal(journal.directory).read_flight(flight_id)
    assert (flight.id, flight.time, flight.meta) == (flight_id, "2026-11-23T12:00:00+00:00", META)
    first, second = flight.changes
    assert (first.before, first.after) == (State(b"a\xff", 0o640, 1, 2), State(b"b", 0o640, 1, 2))
    assert (first.address, first.label, first.done) == (ADDRESS, "x", False)
    assert (second.before, second.before.missing_dirs) == (ABSENT, ("/n",))
    assert flight.damage is None


def test_only_the_user_may_look_into_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal, _ = make_flight(tmp_path / "journal")
    finally:
        os.umask(before)
    assert stat.S_IMODE(journal.directory.stat().st_mode) == 0o700
    for path in journal.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_flight_goes_through_its_stations(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)

    def now() -> Flight:
        return journal.read_flight(flight_id)

    assert (now().status, now().open, now().undone) == ("interrupted", True, False)
    journal.mark(flight_id, "done", 0)
    journal.mark(flight_id, "done", 1)
    assert [change.done for change in now().changes] == [True, True]
    journal.end(flight_id)
    assert now().status == "applied"
    journal.mark(flight_id, "undone", 1)
    assert (now().status, now().open) == ("applied", True)
    journal.conflict(flight_id, 0, "changed")
    assert (now().status, now().open, now().undone) == ("conflict", False, False)
    assert now().changes[0].conflict == "changed"
    journal.mark(flight_id, "undone", 0)
    assert (now().status, now().open, now().undone) == ("undone", False, True)
    journal.failed(flight_id, "disk full")
    assert (now().status, now().failed) == ("failed", "disk full")


def test_ids_say_the_time_and_sort_in_the_order_of_the_flights(tmp_path: Path) -> None:
    times = [NOON, NOON, NOON - timedelta(days=400), NOON + timedelta(minutes=5), NOON + timedelta(minutes=4)]
    ids = [make_flight(tmp_path, at)[1] for at in times]
    assert ids[0].startswith("20261123-120000-")
    assert ids == sorted(ids)
    assert len({name[:15] for name in ids}) == len(ids)
    flights = Journal(tmp_path).read_flights()
    assert [flight.id for flight in flights] == ids
    assert flights[2].time == "2025-10-19T12:00:00+00:00"


def test_the_clock_may_be_of_any_zone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, clock=lambda: datetime.fromisoformat("2026-11-24T00:15:02+09:00"))
    with journal.lock():
        assert journal.begin(META).startswith("20261123-151502-")


@pytest.mark.parametrize("flight_id", ["", "x", "../../etc/passwd", "20261123-120000-zzzz", "20269999-999999-abcd"])
def test_an_unknown_flight_is_an_error_with_a_hint(tmp_path: Path, flight_id: str) -> None:
    with pytest.raises(VeloError, match="no flight") as caught:
        Journal(tmp_path).read_flight(flight_id)
    assert "history" in caught.value.hint


def test_files_of_others_are_no_flights(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    for name in ("notes.txt", "20269999-999999-abcd.jsonl", "copy-20261123-120000-abcd.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert [flight.id for flight in journal.read_flights()] == [flight_id]


def test_a_file_cut_off_anywhere_is_the_flight_so_far(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    journal.mark(flight_id, "done", 0)
    journal.release(flight_id)
    content = file_of(journal, flight_id).read_bytes()
    assert content.endswith(b"\n")
    seen = set()
    for size in range(len(content) + 1):
        flight = parse_flight(flight_id, content[:size])
        whole_lines = content[:size].count(b"\n")
        seen.add(whole_lines)
        assert (flight is None) == (whole_lines == 0)
        if flight is not None:
            assert flight.damage is None
            assert len(flight.changes) == min(whole_lines - 1, 2)
            assert [change.done for change in flight.changes] == [whole_lines == 4, False][: len(flight.changes)]
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("torn", [b'{"record": "do', b"\0" * 5000, b'{"record": "done", "number": 1}' + b"x" * 300])
def test_the_next_line_takes_the_place_of_a_torn_one(tmp_path: Path, torn: bytes) -> None:
    journal, flight_id = make_flight(tmp_path)
    journal.release(flight_id)
    with file_of(journal, flight_id).open("ab") as stream:
        stream.write(torn)
    journal.mark(flight_id, "done", 0)
    journal.mark(flight_id, "done", 1)
    flight = journal.read_flight(flight_id)
    assert [change.done for change in flight.changes] == [True, True]
    assert flight.damage is None
    journal.release(flight_id)
    for line in file_of(journal, flight_id).read_text().splitlines():
        json.loads(line)


def test_a_damaged_line_is_told_and_the_rest_is_still_there(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    journal.mark(flight_id, "done", 1)
    journal.release(flight_id)
    lines = file_of(journal, flight_id).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"content": "Yf8="', b'"content": "Yv8="')  # one bit of the kept content
    file_of(journal, flight_id).write_bytes(b"".join(lines))
    flight = journal.read_flight(flight_id)
    assert flight.damage is not None
    assert "line 2" in flight.damage
    assert [change.number for change in flight.changes] == [1]
    assert flight.changes[0].done


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from([b"{}", b"[]", b"1", b'{"record":"done"}', b"[" * 3000]))
    )
)
def test_no_content_can_break_the_reader(lines: list[bytes]) -> None:
    begin = json.dumps(
        {"record": "begin", "time": "", "version": "", "backend": "", "model": "", "summary": "", "schema_version": 1}
    )
    flight = parse_flight("x", b"\n".join([begin.encode(), *lines, b""]))
    assert flight is not None
    assert flight.changes == ()


def test_records_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    journal.release(flight_id)
    with file_of(journal, flight_id).open("ab") as stream:
        stream.write(b'{"record": "confirmed", "ratio": 1.2}\n')
    assert journal.read_flight(flight_id).damage is None


def test_each_record_is_durable_when_the_call_returns(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    assert count_calls(lambda: journal.mark(flight_id, "done", 0)) == ["write", "fsync"]


def test_marks_fit_into_the_reserved_space(tmp_path: Path) -> None:
    journal, flight_id = make_flight(tmp_path)
    size = file_of(journal, flight_id).stat().st_size
    for number in (0, 1):
        journal.mark(flight_id, "done", number)
        journal.mark(flight_id, "undone", number)
        journal.conflict(flight_id, number, "it was changed by somebody else since")
    journal.failed(flight_id, "x" * 1000)
    assert file_of(journal, flight_id).stat().st_size == size
    journal.release(flight_id)
    assert file_of(journal, flight_id).read_bytes().endswith(b"}\n")


def test_the_lock_is_held_by_one_and_let_go(tmp_path: Path) -> None:
    with Journal(tmp_path).lock():
        with pytest.raises(VeloError, match="another VeloLLM run") as caught, Journal(tmp_path).lock():
            pass
        assert caught.value.hint
    with Journal(tmp_path).lock():
        pass


def test_a_directory_that_cannot_be_made_is_an_error_with_a_hint() -> None:
    with public_dir() as directory:
        (directory / "data").mkdir(mode=0o555)
        journal = Journal(directory / "data" / "journal")
        with ordinary_user(), pytest.raises(VeloError) as caught, journal.lock():
            pass
        assert "VELOLLM_HOME" in caught.value.hint


def test_a_journal_that_may_not_be_read_is_an_error_with_a_hint() -> None:
    with public_dir() as directory, ordinary_user():
        journal, flight_id = make_flight(directory / "journal")
        file_of(journal, flight_id).chmod(0)
        with pytest.raises(VeloError, match="cannot read the journal") as caught:
            journal.read_flights()
        assert caught.value.hint
        journal.directory.chmod(0)
        with pytest.raises(VeloError, match="cannot read the journal"):
            journal.read_flights()
