"""Memory that is held so that servers start alike."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.bench.ballast import ballast, parse_scattered_bytes
from velollm.units import KIB, MIB

BUDDYINFO = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
Node 0, zone    DMA32    304    291    294    279    207    106     43     23     14     11    729
Node 0, zone   Normal  32751  29063  18715   9400   5721   3963   2981   1588   1189    465   1914
"""


def test_pieces_below_128_kib_count() -> None:
    small = 4 * (304 + 32751) + 8 * (291 + 29063) + 16 * (294 + 18715) + 32 * (279 + 9400) + 64 * (207 + 5721)
    assert parse_scattered_bytes(BUDDYINFO, 4096) == small * KIB
    # Pages of 64 KiB: only single ones are that small.
    assert parse_scattered_bytes(BUDDYINFO, 65536) == 64 * KIB * (304 + 32751)


@given(st.text())
def test_other_text_is_nothing(text: str) -> None:
    assert parse_scattered_bytes(text) >= 0
    assert parse_scattered_bytes("") == 0


def proc(path: Path, available_kib: int) -> Path:
    (path / "buddyinfo").write_text(BUDDYINFO, encoding="ascii")
    (path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available_kib} kB\n", encoding="ascii")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how its memory lies")
def test_it_is_there_until_the_end_and_at_most_a_tenth_of_what_is_free(tmp_path: Path) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with ballast(proc(tmp_path, 640 * KIB)) as held:
        assert held == 64 * MIB
        assert process.memory_info().rss - before > 48 * MIB
    assert process.memory_info().rss - before < 32 * MIB


def test_without_a_word_of_the_system_nothing_is_held(tmp_path: Path) -> None:
    with ballast(tmp_path) as held:
        assert held == 0
    (tmp_path / "buddyinfo").write_text(BUDDYINFO, encoding="ascii")
    (tmp_path / "meminfo").write_bytes(b"\xff")
    with ballast(tmp_path) as held:
        assert held == 0
    with ballast(proc(tmp_path, mmap.PAGESIZE // KIB)) as held:
        assert held == 0
