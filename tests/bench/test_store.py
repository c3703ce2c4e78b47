"""The file of the history: versions, damage, kills, and who else is writing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.program import SRC
from velollm.bench.store import FILE, STEPS, Row, read_rows, write_rows
from velollm.errors import VeloError


def nothing(_line: bytes) -> Row | None:
    return None


def row(name: str, **more: Any) -> Row:
    fields = {
        "id": name,
        "origin": "here",
        "taken_at": f"2026-01-0{len(name)}",
        "model": "m",
        "backend": "b",
        "workload": "chat",
        "depth_tokens": 0,
        "facts": {"os": "linux"},
        "knobs": {},
        "digests": {},
        "quick": True,
    }
    return Row({**fields, **more}, ({"arm": "default", "round": 0, "ttft_s": 0.5},))


def write(directory: Path, *rows: Row, **more: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return write_rows(directory, rows, nothing, **more)


def ids(directory: Path) -> list[str]:
    return [found.fields["id"] for found in read_rows(directory, nothing).rows]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert write(tmp_path, row("a"), row("bb", machine="x")) == (("a", "bb"), ())
    found = read_rows(tmp_path, nothing).rows
    assert [Row({k: v for k, v in item.fields.items() if v is not None}, item.samples) for item in found] == [
        row("a"),
        row("bb", machine="x"),
    ]
    assert write(tmp_path, row("a", model="other"), row("ccc")) == (("ccc",), ())
    assert [item.fields["model"] for item in read_rows(tmp_path, nothing).rows] == ["m", "m", "m"]


def test_a_query_of_ones_own_is_easy(tmp_path: Path) -> None:
    write(tmp_path, row("a", engine_version="0.33.0"))
    query = "SELECT engine_version, arm, json_extract(figures, '$.ttft_s') FROM sample JOIN result ON result = number"
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        assert connection.execute(query).fetchall() == [("0.33.0", "default", 0.5)]


LATER = (*STEPS, ("ALTER TABLE result ADD COLUMN mood TEXT", "UPDATE result SET mood = 'good'"))


def test_an_older_database_is_brought_up_to_date(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    assert [found.fields["id"] for found in read_rows(tmp_path, nothing, steps=LATER).rows] == ["a"]
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        assert connection.execute("SELECT id, mood FROM result").fetchall() == [("a", "good")]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(LATER),)
    write(tmp_path, row("bb"), steps=LATER)
    assert len(read_rows(tmp_path, nothing, steps=LATER).rows) == 2


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    before = (tmp_path / FILE).read_bytes()
    broken = (*STEPS, ("ALTER TABLE result ADD COLUMN mood TEXT", "UPDATE nowhere SET mood = 1"))
    with pytest.raises(VeloError, match="no such table"):
        write(tmp_path, row("bb"), steps=broken)
    assert (tmp_path / FILE).read_bytes() == before
    assert ids(tmp_path) == ["a"]


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, row("a"), steps=LATER)
    before = (tmp_path / FILE).read_bytes()
    for use in (lambda: ids(tmp_path), lambda: write(tmp_path, row("bb"))):
        with pytest.raises(VeloError, match="written by a newer VeloLLM") as caught:
            use()
        assert "update" in caught.value.hint
    assert (tmp_path / FILE).read_bytes() == before


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def overwritten(data: bytes) -> bytes:
    # The header stays: only a look at all pages finds it.
    return data[:4096] + b"\xa5" * (len(data) - 4096)


def no_database(data: bytes) -> bytes:
    return b"once upon a time " * 300


@pytest.mark.parametrize("damage", [torn, overwritten, no_database])
def test_a_damaged_database_is_put_aside_and_not_deleted(tmp_path: Path, damage: Any) -> None:
    write(tmp_path, *(row("a" * n) for n in range(1, 9)))
    path = tmp_path / FILE
    data = damage(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(VeloError, match="is damaged"):
        ids(tmp_path)
    assert path.read_bytes() == data
    added, (note,) = write(tmp_path, row("new"))
    assert added == ("new",)
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*")
    assert str(aside) in note
    assert aside.read_bytes() == data
    assert ids(tmp_path) == ["new"]
    assert write(tmp_path, row("newer"))[1] == ()


def test_another_programs_database_is_not_written_to(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    write(tmp_path, row("a"))
    assert ids(tmp_path) == ["a"]
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*")
    with closing(sqlite3.connect(aside)) as connection:
        assert connection.execute("SELECT * FROM bookmarks").fetchall() == []


def test_an_empty_file_is_a_beginning(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert ids(tmp_path) == []
    assert write(tmp_path, row("a")) == (("a",), ())


KILLED = """
import os, signal, sys
from pathlib import Path
from velollm.bench import store

insert = store._insert
def last(connection, row):
    # So that half of it is in the file itself when the end comes.
    connection.execute("PRAGMA cache_size = 5")
    found = insert(connection, row)
    if row.fields["id"] == "bb":
        os.kill(os.getpid(), signal.SIGKILL)
    return found
store._insert = last
samples = tuple({"arm": "default", "round": n, "text": "x" * 500} for n in range(400))
fields = {"origin": "here", "taken_at": "2026-02-01", "model": "m", "backend": "b", "workload": "chat"}
fields |= {"depth_tokens": 0, "facts": {}, "knobs": {}, "digests": {}}
rows = [store.Row({"id": name, **fields}, samples) for name in ("aa", "bb")]
store.write_rows(Path(sys.argv[1]), rows, lambda line: None)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_writer_leaves_the_history_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    size = (tmp_path / FILE).stat().st_size
    argv = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(SRC)}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / FILE).stat().st_size > size
    assert (tmp_path / f"{FILE}-journal").exists()
    assert ids(tmp_path) == ["a"]
    assert write(tmp_path, row("bbb")) == (("bbb",), ())
    assert ids(tmp_path) == ["a", "bbb"]


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def add(number: int) -> None:
        try:
            write(tmp_path, row("x" * number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(map(len, ids(tmp_path))) == list(range(1, 9))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    (tmp_path / FILE).chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert ids(tmp_path) == ["a"]
        with pytest.raises(VeloError, match="cannot write the history"):
            write(tmp_path, row("bb"))
    finally:
        tmp_path.chmod(0o700)
