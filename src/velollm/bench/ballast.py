"""Free memory that lies in single pages, held while servers are compared side by side.

A process gets first what others have just given back: single pages here and there. Whoever starts first would lose by
that alone: of four equal servers the first decoded 4 to 8% slower than the last (made models of 0.2 and 1.1 billion
weights, llama-server b10488, no huge pages, a virtual machine), and with those pages held all were within 2%. The
kernel hands out the smallest piece that fits (mm/page_alloc.c of Linux, ``__rmqueue_smallest``), so single pages that
are taken beforehand are those.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from velollm.units import KIB

# Pieces below it count as scattered; with those held, all of several equal servers were equally fast.
_PIECE_BYTES = 128 * KIB
_MOST_SHARE = 0.1
_ZONE = re.compile(r"^Node +\d+, zone +\w+((?: +\d{1,12}){1,20}) *$", re.MULTILINE)
_AVAILABLE = re.compile(r"^MemAvailable: +(\d{1,15}) kB$", re.MULTILINE)


@contextlib.contextmanager
def ballast(proc: Path = Path("/proc")) -> Iterator[int]:
    """Holds the scattered part of the free memory, at most a tenth of what is available; gives its bytes.

    0 where the system does not tell (only Linux does), or has not got it.
    """
    held = _take(_wanted_bytes(proc))
    try:
        yield 0 if held is None else len(held)
    finally:
        if held is not None:
            held.close()


def parse_scattered_bytes(buddyinfo: str, page_bytes: int = mmap.PAGESIZE) -> int:
    """Bytes of free memory in pieces below 128 KiB, from ``/proc/buddyinfo``: free pieces of 1, 2, 4, ... pages."""
    total = 0
    for zone in _ZONE.findall(buddyinfo):
        for order, count in enumerate(zone.split()):
            size = page_bytes << order
            total += size * int(count) if size < _PIECE_BYTES else 0
    return total


def _wanted_bytes(proc: Path) -> int:
    try:
        scattered = parse_scattered_bytes((proc / "buddyinfo").read_text(encoding="ascii"))
        available = _AVAILABLE.search((proc / "meminfo").read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return 0
    most = int(_MOST_SHARE * int(available.group(1)) * KIB) if available else 0
    return min(scattered, most) // mmap.PAGESIZE * mmap.PAGESIZE


def _take(size: int) -> mmap.mmap | None:
    """Memory of that size in single pages, each of them touched."""
    if not size or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return None
    try:
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.madvise(mmap.MADV_NOHUGEPAGE)
    except (OSError, ValueError):
        return None
    for place in range(0, size, mmap.PAGESIZE):
        held[place] = 1
    return held
