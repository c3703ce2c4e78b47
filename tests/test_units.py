from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.units import (
    GIB,
    KIB,
    MIB,
    parse_bytes,
    parse_cpu_list,
    parse_duration_s,
    render_bytes,
    render_cpu_list,
    render_duration,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("15.7 GiB", round(15.7 * GIB)),
        ("512M", 512 * MIB),
        ("81559 MiB", 81559 * MIB),
        ("1000 kB", 1_000_000),
        ("2 GB", 2 * 10**9),
        ("  7 ", 7),
        (".5k", 512),
        ("3 TiB", 3 * 1024**4),
        ("0", 0),
    ],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1 GiB", "1 parsec", "1,5 GiB", "1e3", "9" * 40, "N/A", "1 GiB free"])
def test_what_is_no_amount(text: str) -> None:
    assert parse_bytes(text) is None


def test_render_bytes() -> None:
    assert [render_bytes(n) for n in (None, 0, 1023, KIB, 1536 * MIB, 300 * GIB, 5000 * GIB, -MIB)] == [
        "unknown",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
        "300 GiB",
        "5000 GiB",
        "-1.0 MiB",
    ]


@given(st.integers(0, 2**50))
def test_rendered_bytes_are_near(count: int) -> None:
    parsed = parse_bytes(render_bytes(count))
    assert parsed is not None
    assert abs(parsed - count) <= max(0.05 * count, 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3m", 180),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("45", 45),
        ("1.5s", 1.5),
        ("-1", -1),
        ("-5m", -300),
        (" 2H ", 7200),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "soon", "3 weeks", "m3", "3m!", "nan", "inf", "-infinity"])
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration_s(text) is None


@given(st.text(max_size=20))
def test_any_text_gives_a_finite_duration_or_none(text: str) -> None:
    seconds = parse_duration_s(text)
    assert seconds is None or math.isfinite(seconds)


def test_render_duration() -> None:
    assert [render_duration(s) for s in (None, -1, 0.85, 2.4, 185, 7260)] == [
        "unknown",
        "for ever",
        "850 ms",
        "2.4 s",
        "3m05s",
        "2h01m",
    ]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), (" 1 , 2-2 ", {1, 2}), ("0,,1", {0, 1})],
)
def test_parse_cpu_list(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == frozenset(cpus)


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "0-999999", "0x1", "1;2", "0-3:1/2"])
def test_what_is_no_cpu_list(text: str) -> None:
    assert parse_cpu_list(text) is None


@given(st.frozensets(st.integers(0, 9999)))
def test_cpu_lists_there_and_back(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(render_cpu_list(cpus)) == cpus


def test_render_cpu_list_is_short() -> None:
    assert render_cpu_list(frozenset({0, 1, 2, 3, 8, 10, 11})) == "0-3,8,10-11"
