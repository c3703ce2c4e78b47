"""The append-only record of what was there before each write. Undo reads nothing else.

One file of JSON lines for each flight. Every line is on the disk before the act that it announces. What follows
the last line end was never completed, so nothing was done after it; it is ignored, and the next line takes its
place. Space for the marks of a flight is set aside there before its first write, so that a full disk cannot stop
it half-way. Records: ``begin``, ``before`` (one for each place), ``done``, ``end`` (all of it is written),
``failed`` (put back at once, and why), ``undone``, ``conflict``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from velollm.config import try_lock
from velollm.errors import VeloError
from velollm.targets.base import JSON, Address, State
from velollm.targets.disk import disk_error, make_dirs, missing_dirs, sync_dir, write_all

SCHEMA_VERSION = 1
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_ID_TIME = "%Y%m%d-%H%M%S"
_SUFFIX = ".jsonl"
_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# A mark takes about 40 bytes; a change gets at most two (`done`, `undone` or `conflict`), a flight `end` or `failed`.
_RESERVED_BYTES_EACH = 256
_RESERVED_BYTES_FLIGHT = 2048
_T = TypeVar("_T", int, str)
FlightStatus = Literal["applied", "interrupted", "failed", "undone", "conflict"]


@dataclass(frozen=True)
class FlightMeta:
    """What a flight is: who wrote it, for which backend and model, and one line about it.

    ``details`` is anything else worth showing later (plan, verdict), as JSON.
    """

    version: str
    backend: str
    model: str
    summary: str
    details: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One place that a flight changes, with its states before and after, and how far that went."""

    number: int
    address: Address
    label: str
    before: State
    after: State
    done: bool = False
    undone: bool = False
    conflict: str | None = None

    @property
    def settled(self) -> bool:
        """Whether undo is through with it: restored, or left alone because somebody changed it since."""
        return self.undone or self.conflict is not None


@dataclass(frozen=True)
class Flight:
    """One flight as its journal file tells it. ``time`` is UTC (ISO 8601).

    ``complete``: every change was written. ``failed``: why it was put back at once. ``damage``: what could not be
    read of its file.
    """

    id: str
    time: str
    meta: FlightMeta
    changes: tuple[Change, ...] = ()
    complete: bool = False
    failed: str | None = None
    damage: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def open(self) -> bool:
        """Whether something of it may still be in place."""
        return any(not change.settled for change in self.changes)

    @property
    def undone(self) -> bool:
        """Whether nothing of it is left."""
        return all(change.undone for change in self.changes)

    @property
    def status(self) -> FlightStatus:
        """Where it stands: ``interrupted`` was killed in mid-apply, ``failed`` was put back at once."""
        if self.open:
            return "applied" if self.complete else "interrupted"
        if not self.undone:
            return "conflict"
        return "undone" if self.changes and self.failed is None else "failed"


class Journal:
    """The flights under one directory (mode 0700; its files 0600)."""

    def __init__(self, directory: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.directory = directory
        self._clock = clock

    def read_flights(self) -> list[Flight]:
        """All flights, oldest first. Raises `VeloError` where the directory cannot be read."""
        return [flight for name in self._ids() if (flight := self._read(name)) is not None]

    def read_flight(self, flight_id: str) -> Flight:
        """One flight. Raises `VeloError` where there is none of that id."""
        flight = self._read(flight_id) if _is_id(flight_id) else None
        if flight is None:
            raise VeloError(f"there is no flight '{flight_id}'", "`velollm history` lists the flights")
        return flight

    def begin(self, meta: FlightMeta) -> str:
        """Start the record of a flight and return its id; to be called under `lock`.

        Ids sort in the order of the flights, even where the clock went backwards.
        """
        now = self._clock().astimezone(UTC)
        ids = self._ids()
        stamp = max(now, _id_time(ids[-1]) + timedelta(seconds=1)) if ids else now
        flight_id = f"{stamp.strftime(_ID_TIME)}-{secrets.token_hex(2)}"
        record: dict[str, JSON] = {
            "record": "begin",
            "schema_version": SCHEMA_VERSION,
            "flight": flight_id,
            "time": now.isoformat(timespec="seconds"),
            "version": meta.version,
            "backend": meta.backend,
            "model": meta.model,
            "summary": meta.summary,
            "details": meta.details,
        }
        self._append(flight_id, record, create=True)
        return flight_id

    def before(self, flight_id: str, number: int, address: Address, label: str, before: State, after: State) -> None:
        """Announce a write: what is there, and what will be."""
        record: dict[str, JSON] = {"record": "before", "number": number, "target": address, "label": label}
        self._append(flight_id, record | {"before": before.to_json(), "after": after.to_json()})

    def reserve(self, flight_id: str, changes: int) -> None:
        """Take the space that the marks of so many changes will need. Raises `VeloError` where it is not there."""
        path = self._path(flight_id)
        try:
            fd = os.open(path, _FLAGS)
            try:
                os.lseek(fd, 0, os.SEEK_END)
                write_all(fd, bytes(_RESERVED_BYTES_FLIGHT + changes * _RESERVED_BYTES_EACH))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error("write the journal", path, error) from error

    def release(self, flight_id: str) -> None:
        """Give back what is left of the reserved space; never raises."""
        with contextlib.suppress(OSError):
            fd = os.open(self._path(flight_id), _FLAGS)
            try:
                os.ftruncate(fd, _end_of_lines(fd))
            finally:
                os.close(fd)

    def mark(self, flight_id: str, record: Literal["done", "undone"], number: int) -> None:
        """Note that a write, or its undoing, was done and read back."""
        self._append(flight_id, {"record": record, "number": number})

    def conflict(self, flight_id: str, number: int, why: str) -> None:
        """Note that undo left a place alone."""
        self._append(flight_id, {"record": "conflict", "number": number, "why": why})

    def end(self, flight_id: str) -> None:
        """Note that every write was done."""
        self._append(flight_id, {"record": "end"})

    def failed(self, flight_id: str, why: str) -> None:
        """Note why the flight was put back at once."""
        self._append(flight_id, {"record": "failed", "why": why})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the journal alone; the system lets go of it when the process ends, however it ends.

        Raises:
            VeloError: another run holds it, or the directory cannot be made.
        """
        path = self.directory / "lock"
        try:
            self._make_directory()
            fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise disk_error("open the journal's lock", path, error) from error
        try:
            if not try_lock(fd):
                raise VeloError(
                    "another VeloLLM run is writing or undoing settings at this moment",
                    "wait until it has ended, then try again",
                )
            yield
        finally:
            os.close(fd)

    def _path(self, flight_id: str) -> Path:
        return self.directory / f"{flight_id}{_SUFFIX}"

    def _ids(self) -> list[str]:
        try:
            names = [entry.name for entry in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error("read the journal", self.directory, error) from error
        stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(stem for stem in stems if _is_id(stem))

    def _read(self, flight_id: str) -> Flight | None:
        path = self._path(flight_id)
        try:
            return parse_flight(flight_id, path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error("read the journal", path, error) from error

    def _make_directory(self) -> None:
        if self.directory.is_dir():
            return
        make_dirs(missing_dirs(self.directory))
        self.directory.mkdir(mode=0o700, exist_ok=True)
        sync_dir(self.directory.parent)

    def _append(self, flight_id: str, record: Mapping[str, JSON], create: bool = False) -> None:
        line = json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"
        path = self._path(flight_id)
        try:
            fd = os.open(path, _FLAGS | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
            try:
                _append_line(fd, line)
                if create:
                    sync_dir(self.directory)
            except OSError:
                if create:
                    path.unlink()
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error("write the journal", path, error) from error


def _id_time(flight_id: str) -> datetime:
    return datetime.strptime(flight_id[:15], _ID_TIME).replace(tzinfo=UTC)


def _is_id(text: str) -> bool:
    if not _ID.fullmatch(text):
        return False
    try:
        return _id_time(text).year < 9999
    except ValueError:
        return False


def parse_flight(flight_id: str, content: bytes) -> Flight | None:
    """A flight from its file; None where not even its first line was completed, so that nothing was done.

    Damage (a line that is no record, a content that is not the one that was written) is told in ``damage``;
    whatever else can be read is still there.
    """
    lines = content.split(b"\n")[:-1]  # what follows the last line end was never completed
    if not lines:
        return None
    damage: list[str] = []
    flight = Flight(flight_id, "", FlightMeta("", "", "", ""))
    changes: dict[int, Change] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            flight = _follow(flight, changes, record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damage.append(f"line {number} of the journal of flight {flight_id} cannot be read")
    ordered = tuple(changes[number] for number in sorted(changes))
    return replace(flight, changes=ordered, damage="; ".join(damage) or None)


def _follow(flight: Flight, changes: dict[int, Change], record: Mapping[str, JSON]) -> Flight:
    """The flight after one more record; ``changes`` is brought up to date in place."""
    kind = record["record"]
    if kind == "begin":
        return _begin(flight, record)
    if kind == "end":
        return replace(flight, complete=True)
    if kind == "failed":
        return replace(flight, failed=str(record["why"]))
    if kind not in ("before", "done", "undone", "conflict"):
        return flight  # a later version may tell more
    number = _as(int, record["number"])
    if kind == "before":
        address = record["target"]
        if not isinstance(address, Mapping):
            raise TypeError
        before, after = State.from_json(record["before"]), State.from_json(record["after"])
        changes[number] = Change(number, address, _as(str, record["label"]), before, after)
    elif kind == "done":
        changes[number] = replace(changes[number], done=True)
    elif kind == "undone":
        changes[number] = replace(changes[number], undone=True, conflict=None)
    else:
        changes[number] = replace(changes[number], conflict=_as(str, record["why"]))
    return flight


def _begin(flight: Flight, record: Mapping[str, JSON]) -> Flight:
    version, backend, model, summary = (_as(str, record[name]) for name in ("version", "backend", "model", "summary"))
    details = record.get("details")
    meta = FlightMeta(version, backend, model, summary, details if isinstance(details, Mapping) else {})
    schema_version = _as(int, record["schema_version"])
    return replace(flight, time=_as(str, record["time"]), meta=meta, schema_version=schema_version)


def _as(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _append_line(fd: int, line: bytes) -> None:
    """Write one durable line after the last complete one. Raises `OSError`."""
    os.lseek(fd, _end_of_lines(fd), os.SEEK_SET)
    write_all(fd, line)
    os.fsync(fd)


def _end_of_lines(fd: int) -> int:
    """Where the next line belongs: after the last line end."""
    os.lseek(fd, 0, os.SEEK_SET)
    content = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    return content.rfind(b"\n") + 1
