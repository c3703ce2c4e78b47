"""Scales, ticks and marks."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.report.svg import SHAPES, Scale, mark, number, ratio_scale, ratio_ticks, tick, value_scale

VALUES = st.floats(1e-6, 1e9)


@given(st.lists(VALUES, min_size=1, max_size=6), st.booleans())
def test_a_scale_holds_its_values_in_order(values: list[float], zero: bool) -> None:
    scale = value_scale(values, 160, 590, zero=zero)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 160 <= places[0] <= places[-1] <= 590
    assert 1 <= len(scale.ticks) <= 12
    assert all(160 <= scale(value) <= 590 for value in scale.ticks)


@given(st.lists(st.floats(1e-4, 1e4), max_size=6))
def test_ticks_of_ratios_have_room_and_tell_where_1_is(ratios: list[float]) -> None:
    scale = ratio_scale(ratios, 190, 620)
    ticks = ratio_ticks(scale)
    places = [scale(value) for value in ticks]
    assert 1.0 in ticks
    assert all(later - earlier >= 43.9 for earlier, later in pairwise(places))


def test_twice_and_half_are_equally_far_from_1() -> None:
    scale = ratio_scale([2.0, 0.5], 0, 1000)
    assert scale(2.0) - scale(1.0) == pytest.approx(scale(1.0) - scale(0.5))


def test_what_lies_beyond_is_held_at_the_end() -> None:
    scale = Scale(1.0, 10.0, 0.0, 100.0, log=True)
    assert (scale(0.1), scale(100.0)) == (0.0, 100.0)
    assert scale(math.sqrt(10)) == pytest.approx(50)


def test_values_that_differ_a_lot_are_drawn_on_a_logarithmic_scale() -> None:
    assert not value_scale([1.0, 11.0], 0, 1).log
    assert value_scale([1.0, 13.0], 0, 1).log
    assert not value_scale([1.0, 13.0], 0, 1, zero=True).log


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (40.0, "40.0"),
        (0.0398, "0.0398"),
        (729.4, "729"),
        (12345.6, "12,346"),
        (1.0, "1.00"),
        (2e-5, "2.00e-05"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.5, "0.5"), (1.25, "1.25"), (40.0, "40"), (1500.0, "1,500")])
def test_ticks_have_no_digit_too_many(value: float, text: str) -> None:
    assert tick(value) == text


def test_every_shape_is_another() -> None:
    drawn = [ET.fromstring(mark(shape, 10, 10, "mark")) for shape in SHAPES]
    assert len({(part.tag, part.get("points")) for part in drawn}) == len(SHAPES)
