"""Bytes, seconds and CPU lists: text to value and value to text."""

from __future__ import annotations

import math
import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kb": 1000,
    "kib": KIB,
    "m": MIB,
    "mb": 1000**2,
    "mib": MIB,
    "g": GIB,
    "gb": 1000**3,
    "gib": GIB,
    "t": 1024**4,
    "tb": 1000**4,
    "tib": 1024**4,
}
_BYTES = re.compile(r"^\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([A-Za-z]*)\s*$")
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_bytes(text: str) -> int | None:
    """Bytes of a text such as ``15.7 GiB``, ``512M`` or ``81559 MiB``; None where it is no amount.

    Single letters and the ``iB`` units are powers of 1024, ``kB``, ``MB``, ``GB`` powers of 1000.
    """
    match = _BYTES.match(text)
    if match is None:
        return None
    factor = _BYTE_UNITS.get(match.group(2).lower())
    return None if factor is None else round(float(match.group(1)) * factor)


def render_bytes(count: int | None) -> str:
    """A byte count as a person reads it (``1.5 GiB``); ``unknown`` for None."""
    if count is None:
        return "unknown"
    value, sign = float(abs(count)), "-" if count < 0 else ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 100 else 1
    return f"{sign}{value:.{digits}f} {unit}"


def parse_duration_s(text: str) -> float | None:
    """Seconds of ``3m``, ``1h30m``, ``250ms`` or a bare number of seconds; None where it is none."""
    text = text.strip().lower()
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.lstrip("+-")
    try:
        seconds = float(body)
    except ValueError:
        if not body or _DURATION.sub("", body).strip():
            return None
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(body))
    return sign * seconds if math.isfinite(seconds) else None


def render_duration(seconds: float | None) -> str:
    """Seconds as a person reads them (``850 ms``, ``2.4 s``, ``3m05s``); ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 0:
        return "for ever"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s"


def parse_cpu_list(text: str) -> frozenset[int] | None:
    """CPU numbers of a kernel list such as ``0-3,8``; an empty text is the empty set.

    None where the text is no list. Ranges wider than 65,536 CPUs are refused, so that a damaged
    file cannot take memory (the kernel's own limit, NR_CPUS, is 8,192).
    """
    cpus: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.strip().split(","))):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            return None
        first = int(match.group(1))
        last = int(match.group(2) or first)
        if last < first or last - first > 65536:
            return None
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def render_cpu_list(cpus: frozenset[int]) -> str:
    """CPU numbers in the kernel's short form (``0-3,8``)."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
