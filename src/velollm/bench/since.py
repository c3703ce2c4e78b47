"""`--since`: a date, how long ago, or a version of the engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from velollm.bench.history import Record
from velollm.errors import UsageError
from velollm.units import parse_duration_s

_DAYS = re.compile(r"(\d{1,5})\s*([dw])")
_VERSION = re.compile(r"[vb]?\d{1,9}(?:\.\d{1,9}){0,5}(?:[-.]?(?:rc|alpha|beta|pre)[-.]?\d{0,6})?")
_EARLY = re.compile(r"(?:rc|alpha|beta|pre)[-.]?(\d{0,6})")

Version = tuple[tuple[int, ...], int, int]


def since(records: Sequence[Record], text: str, now: datetime) -> tuple[Record, ...]:
    """The records since a date (``2026-11-01``), for so long (``7d``, ``12h``), or of a version (``0.32.1``) or later.

    A date without a time zone is one of the machine's own zone.

    Raises:
        UsageError: ``text`` is none of these.
    """
    text = text.strip()
    start = _parse_time(text, now)
    if start is not None:
        return tuple(record for record in records if datetime.fromisoformat(record.taken_at) >= start)
    wanted = parse_version(text)
    if wanted is None:
        raise UsageError(
            f"--since takes a date, a duration or a version, not '{text}'",
            "for example --since 2026-11-01, --since 7d or --since 0.32.1",
        )
    versions = {record.id: parse_version(record.engine_version or "") for record in records}
    return tuple(r for r in records if (version := versions[r.id]) is not None and version >= wanted)


def _parse_time(text: str, now: datetime) -> datetime | None:
    if match := _DAYS.fullmatch(text.lower()):
        return now - timedelta(days=int(match.group(1)) * (7 if match.group(2) == "w" else 1))
    # A bare number is a version, never seconds.
    if text[-1:].isalpha() and (seconds := parse_duration_s(text)) is not None and 0 <= seconds < 1e9:
        return now - timedelta(seconds=seconds)
    try:
        return datetime.fromisoformat(text).astimezone() if "-" in text else None
    except (ValueError, OverflowError, OSError):
        return None


def parse_version(text: str) -> Version | None:
    """A version as something that can be ordered: its numbers, and release candidates before their release."""
    text = text.strip().lower()
    if _VERSION.fullmatch(text) is None:
        return None
    early = _EARLY.search(text)
    numbers = tuple(int(number) for number in re.findall(r"\d+", text[: early.start()] if early else text))
    return numbers, 0 if early else 1, int(early.group(1) or 0) if early else 0
