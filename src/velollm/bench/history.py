"""Every result that was ever taken here, as raw samples with the facts and knobs they were taken under."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from velollm.bench.result import BenchResult, Start
from velollm.bench.samples import Sample
from velollm.config import ensure_dir
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Knobs, KnobValue

SCHEMA_VERSION = 1
_FILE = "history.jsonl"


class Record(BaseModel):
    """One result: raw ``samples``, the ``facts`` of the machine (those that are known) and each arm's ``knobs``.

    ``incomplete``: why it broke off, None where it did not.
    ``taken_at`` is UTC in ISO 8601. Averages are computed from the samples when asked for, never stored.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    id: str
    taken_at: str
    model: str
    backend: str
    workload: str
    quick: bool
    facts: dict[str, object]
    knobs: dict[str, dict[str, KnobValue]]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    depth_tokens: int = 0
    starts: tuple[Start, ...] = ()
    incomplete: str | None = None


@dataclass(frozen=True)
class History:
    """All records, oldest first, and how many lines could not be read (a torn end after a crash, for one)."""

    records: tuple[Record, ...]
    damaged_lines: int


def append_result(
    directory: Path,
    result: BenchResult,
    *,
    model: str,
    backend: str,
    facts: Facts,
    knobs: Mapping[str, Knobs],
    now: datetime | None = None,
) -> Record:
    """Add a result to the history in ``directory``; it is on the disk when this returns.

    Raises:
        VeloError: it cannot be written; the file is then as it was before.
    """
    taken_at = (now or datetime.now(UTC)).astimezone(UTC)
    record = Record(
        id=f"{taken_at:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        taken_at=taken_at.isoformat(timespec="seconds"),
        model=model,
        backend=backend,
        workload=result.workload,
        quick=result.quick,
        facts=facts.model_dump(mode="json", exclude_none=True),
        knobs={arm: dict(chosen) for arm, chosen in knobs.items()},
        samples=result.runs,
        notes=result.notes,
        depth_tokens=result.depth_tokens,
        starts=result.starts,
        incomplete=result.incomplete,
    )
    path = ensure_dir(directory) / _FILE
    try:
        _append_line(path, record.model_dump_json().encode())
    except OSError as error:
        raise VeloError(
            f"cannot write the history {path}: {error.strerror or error}",
            "free some disk space, or set VELOLLM_HOME to a directory that you may write to",
        ) from error
    return record


def read_history(directory: Path) -> History:
    """The history in ``directory``; empty where there is none. Lines that cannot be read are counted and left out.

    Raises:
        VeloError: the file is there but may not be read.
    """
    path = directory / _FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return History((), 0)
    except OSError as error:
        raise VeloError(f"cannot read the history {path}: {error.strerror}", "check who owns the file") from error
    return parse_history(lines)


def parse_history(lines: list[bytes]) -> History:
    """Records from the lines of a history file."""
    records: list[Record] = []
    damaged = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return History(tuple(records), damaged)


def _append_line(path: Path, line: bytes) -> None:
    """Append one line and sync it. A line that was torn by a crash is closed first; ours is whole or not there."""
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            _write_all(file, (b"\n" if _is_torn(file, size) else b"") + line + b"\n")
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
    finally:
        os.close(file)
    if is_new:
        _sync_directory(path.parent)


def _is_torn(file: int, size: int) -> bool:
    if size == 0:
        return False
    os.lseek(file, size - 1, os.SEEK_SET)
    return os.read(file, 1) != b"\n"


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_directory(directory: Path) -> None:
    # Windows cannot open a directory; there the file's own sync has to do.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
