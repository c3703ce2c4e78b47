"""Reading text as Ollama does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.doctor.gotext import clean, is_duration, is_uint, parse_bool


@pytest.mark.parametrize("text", ["5m", "1h30m", "-1", "300", "0", "1.5h", ".5s", "100ms", "-1s", "2µs"])
def test_durations_that_are_read(text: str) -> None:
    assert is_duration(text)


@pytest.mark.parametrize("text", ["1d", "5 m", "forever", "h", "1h30", "", "1.5", "--1"])
def test_durations_that_are_not(text: str) -> None:
    assert not is_duration(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("T", True), ("False", False), ("0", False), ("on", None), ("tRUE", None)]
)
def test_switches(text: str, value: bool | None) -> None:
    assert parse_bool(text) is value


@given(st.integers(0, 2**64 - 1))
def test_whole_numbers_are_read(number: int) -> None:
    assert is_uint(str(number))
    assert not is_uint(f"-{number}")
    assert not is_uint(f"{number}k")


def test_numbers_out_of_range_are_not() -> None:
    assert not is_uint(str(2**64))
    assert not is_uint("²")


@given(st.text(max_size=30))
def test_any_text_is_answered(text: str) -> None:
    kept = clean(text)
    assert clean(kept) == kept
    parse_bool(kept), is_uint(kept), is_duration(kept)
