"""The file that holds the history: an SQLite database that survives a kill, a full disk and an older VeloLLM.

It is written with a rollback journal, not with a write-ahead log: between two commands it is one file, which may lie in
a home directory on a network too. A commit is on the disk, or nothing of it is (https://www.sqlite.org/atomiccommit.html).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from velollm.config import ensure_dir
from velollm.errors import VeloError

FILE = "history.db"
OLD_FILE = "history.jsonl"
"""One record a line, as it was before. It is taken over once, and kept under another name."""

_WAIT_S = 10.0
_HINT = "free some disk space, or set VELOLLM_HOME to a directory that you may write to"

# Each step brings a database from the version of its place (0: an empty file) to the next one. Steps are never changed,
# only added.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE result (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            origin TEXT NOT NULL,
            taken_at TEXT NOT NULL,
            model TEXT NOT NULL,
            backend TEXT NOT NULL,
            engine_version TEXT,
            machine TEXT,
            profile TEXT,
            workload TEXT NOT NULL,
            depth_tokens INTEGER NOT NULL,
            facts TEXT NOT NULL,
            knobs TEXT NOT NULL,
            digests TEXT NOT NULL,
            rest TEXT NOT NULL
        )""",
        "CREATE INDEX result_by_time ON result (taken_at)",
        """CREATE TABLE sample (
            result INTEGER NOT NULL REFERENCES result (number) ON DELETE CASCADE,
            place INTEGER NOT NULL,
            arm TEXT NOT NULL,
            round INTEGER NOT NULL,
            figures TEXT NOT NULL,
            PRIMARY KEY (result, place)
        ) WITHOUT ROWID""",
    ),
)
_PLAIN = ("id", "origin", "taken_at", "model", "backend", "engine_version", "machine", "profile", "workload")
_COLUMNS = (*_PLAIN, "depth_tokens")
_DOCUMENTS = ("facts", "knobs", "digests")
_INSERT = (
    "INSERT INTO result (id, origin, taken_at, model, backend, engine_version, machine, profile, workload, "
    "depth_tokens, facts, knobs, digests, rest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO NOTHING"
)
_SELECT = (
    "SELECT number, id, origin, taken_at, model, backend, engine_version, machine, profile, workload, depth_tokens, "
    "facts, knobs, digests, rest FROM result"
)
_NEWEST = f"{_SELECT} WHERE origin = 'here' ORDER BY taken_at DESC, number DESC LIMIT ?"


@dataclass(frozen=True)
class Row:
    """One result: its fields as plain JSON, and its samples as such."""

    fields: dict[str, Any]
    samples: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Rows:
    """What a history holds, and how many results of it could not be read."""

    rows: tuple[Row, ...]
    damaged: int = 0


ParseLine = Callable[[bytes], Row | None]
"""A line of an old history to a row; None where it cannot be read."""


class DamagedError(VeloError):
    """The file is no database any more, or not this program's."""


def write_rows(
    directory: Path, rows: Sequence[Row], parse_line: ParseLine, *, steps: Sequence[Sequence[str]] = STEPS
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Add results that are not there yet, all or none; their ids, and what else happened in a sentence each.

    Raises:
        VeloError: it cannot be written; everything is then as it was before.
    """
    path = ensure_dir(directory) / FILE
    notes: list[str] = []
    try:
        added, taken = _write(path, rows, parse_line, steps)
    except DamagedError:
        aside = _put_aside(path)
        notes.append(f"The history was damaged: it is kept as {aside}, and a new one was begun.")
        added, taken = _write(path, rows, parse_line, steps)
    return added, (*notes, *taken)


def read_rows(
    directory: Path, parse_line: ParseLine, newest: int | None = None, *, steps: Sequence[Sequence[str]] = STEPS
) -> Rows:
    """All results, or the ``newest`` that were taken here. An old history that was not taken over yet is read too.

    Raises:
        VeloError: the history is there but cannot be read.
    """
    path = directory / FILE
    old, damaged = _read_old(directory / OLD_FILE, parse_line)
    found: list[Row] = []
    if path.exists():
        with _errors(path, "read"), closing(_connect(path)) as connection:
            if _version(connection) > 0:
                _migrate(path, connection, steps)
                found, bad = _select(connection, newest)
                damaged += bad
    known = {row.fields["id"] for row in found}
    found += [row for row in old if row.fields["id"] not in known]
    found.sort(key=lambda row: str(row.fields["taken_at"]))
    return Rows(tuple(found if newest is None else found[len(found) - min(newest, len(found)) :]), damaged)


def _write(
    path: Path, rows: Sequence[Row], parse_line: ParseLine, steps: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    old_path = path.with_name(OLD_FILE)
    with _errors(path, "write"):
        # The database is for its owner alone: facts hold the environment.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with closing(_connect(path)) as connection:
            _check(path, connection)
            _migrate(path, connection, steps)
            old, damaged = _read_old(old_path, parse_line)
            with _transaction(connection):
                taken = [row.fields["id"] for row in old if _insert(connection, row)]
                added = tuple(str(row.fields["id"]) for row in rows if _insert(connection, row))
    if not old and not damaged:
        return added, ()
    kept = _rename_free(old_path, f"{OLD_FILE}.imported")
    lost = f" ({damaged} could not be read)" if damaged else ""
    return added, (f"Results taken over from {old_path}: {len(taken)}{lost}; it is kept as {kept.name}.",)


def _connect(path: Path) -> sqlite3.Connection:
    """An open database; what a killed writer left behind is rolled back by the first look at it."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_S, isolation_level=None)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `DamagedError` where the file is not whole. It reads all of it: 10 ms for 500 results."""
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise _damaged(path)
    if _version(connection) == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise _damaged(path)


def _damaged(path: Path) -> DamagedError:
    return DamagedError(
        f"the history {path} is damaged", "the next `velollm bench` puts it aside, unchanged, and begins a new one"
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(path: Path, connection: sqlite3.Connection, steps: Sequence[Sequence[str]]) -> None:
    """Bring the database to the newest version, in one step that is done or not."""
    if _version(connection) > len(steps):
        raise VeloError(
            f"the history {path} was written by a newer VeloLLM",
            "update VeloLLM, or set VELOLLM_HOME to another directory",
        )
    if _version(connection) == len(steps):
        return
    with _transaction(connection):
        # Another command may have been quicker.
        for step in steps[_version(connection) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have rolled it back already.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _insert(connection: sqlite3.Connection, row: Row) -> bool:
    """Add a row; False where its id is there already."""
    rest = {name: value for name, value in row.fields.items() if name not in (*_COLUMNS, *_DOCUMENTS)}
    values = [row.fields.get(name) for name in _COLUMNS]
    values += [json.dumps(row.fields.get(name)) for name in _DOCUMENTS]
    cursor = connection.execute(_INSERT, [*values, json.dumps(rest)])
    if cursor.rowcount != 1:
        return False
    number = cursor.lastrowid
    connection.executemany(
        "INSERT INTO sample (result, place, arm, round, figures) VALUES (?, ?, ?, ?, ?)",
        [
            (number, place, sample["arm"], sample["round"], json.dumps(sample))
            for place, sample in enumerate(row.samples)
        ],
    )
    return True


def _select(connection: sqlite3.Connection, newest: int | None) -> tuple[list[Row], int]:
    found = connection.execute(_SELECT) if newest is None else connection.execute(_NEWEST, (newest,))
    rows: list[Row] = []
    damaged = 0
    for number, *values in found.fetchall():
        figures = connection.execute("SELECT figures FROM sample WHERE result = ? ORDER BY place", (number,))
        try:
            rows.append(_row(values, [json.loads(text) for (text,) in figures]))
        except (ValueError, TypeError, RecursionError):
            damaged += 1
    return rows, damaged


def _row(values: Sequence[Any], samples: Iterable[dict[str, Any]]) -> Row:
    *plain, facts, knobs, digests, rest = values
    documents = dict(zip(_DOCUMENTS, map(json.loads, (facts, knobs, digests)), strict=True))
    return Row({**json.loads(rest), **dict(zip(_COLUMNS, plain, strict=True)), **documents}, tuple(samples))


def _read_old(path: Path, parse_line: ParseLine) -> tuple[list[Row], int]:
    """Rows of an old history, and how many lines of it cannot be read; none where there is none."""
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except OSError:
        return [], 0
    found = [row for line in lines if (row := parse_line(line)) is not None]
    return found, len(lines) - len(found)


def _put_aside(path: Path) -> Path:
    """Give the database another name, with the journal that belongs to it; the new name."""
    name = f"{FILE}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    journal = path.with_name(f"{FILE}-journal")
    try:
        aside = _rename_free(path, name, strict=True)
    except OSError as error:
        raise VeloError(f"cannot put the damaged history {path} aside: {error.strerror}", _HINT) from error
    with contextlib.suppress(OSError):
        journal.rename(path.with_name(f"{aside.name}-journal"))
    return aside


def _rename_free(path: Path, name: str, *, strict: bool = False) -> Path:
    """Rename to ``name``, or with a number behind it where that is taken; the new path."""
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    goal = next(goal for number in numbers if not (goal := path.with_name(f"{name}{number}")).exists())
    try:
        path.rename(goal)
    except OSError:
        # Another command was quicker, or may not: what was taken over is not taken over twice.
        if strict:
            raise
    return goal


@contextmanager
def _errors(path: Path, what: str) -> Iterator[None]:
    """Failures of the file as errors that a person can mend."""
    try:
        yield
    except sqlite3.Error as error:
        # None: the error is not the library's own, such as that of a closed connection.
        code = getattr(error, "sqlite_errorcode", None) or 0
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path) from error
        busy = code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        hint = "another velollm is writing to it: try again" if busy else _HINT
        raise VeloError(f"cannot {what} the history {path}: {error}", hint) from error
    except OSError as error:
        raise VeloError(f"cannot {what} the history {path}: {error.strerror or error}", _HINT) from error
