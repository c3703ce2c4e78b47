"""The arithmetic of drafting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.models.speculation import (
    best_length,
    break_even,
    break_even_measured,
    chance_of,
    estimate_gain,
    share_accepted,
    tokens_per_pass,
)

chances = st.floats(0, 1)
lengths = st.integers(1, 32)
ratios = st.floats(0.001, 2)


def test_known_values() -> None:
    # Leviathan et al. 2023, table 1 has 0.6, 0.7, 0.8 and 0.9 with 2 to 10 tokens; these are by hand.
    assert tokens_per_pass(0.5, 1) == 1.5
    assert tokens_per_pass(0.5, 2) == 1.75
    assert tokens_per_pass(1.0, 4) == 5.0
    assert tokens_per_pass(0.0, 4) == 1.0
    assert estimate_gain(0.5, 2, 0.25) == pytest.approx(1.75 / 1.5)
    assert best_length(0.5, 0.6) == 0
    assert best_length(0.9, 0.01) == 16
    assert best_length(0.8, 0.1) == 6


@given(chances, lengths)
def test_tokens_are_the_sum_of_the_chances_to_get_so_far(chance: float, length: int) -> None:
    assert tokens_per_pass(chance, length) == pytest.approx(sum(chance**n for n in range(length + 1)), rel=1e-6)
    assert 0 <= share_accepted(chance, length) <= 1 + 1e-12


@given(chances, lengths)
def test_the_chance_comes_back_from_what_was_accepted(chance: float, length: int) -> None:
    share = share_accepted(chance, length)
    assert share_accepted(chance_of(share, length), length) == pytest.approx(share, abs=1e-6)


@given(chances, lengths, ratios)
def test_a_gain_needs_more_acceptance_than_the_break_even(chance: float, length: int, ratio: float) -> None:
    gain, share = estimate_gain(chance, length, ratio), share_accepted(chance, length)
    if abs(share - break_even(ratio)) > 1e-9:
        assert (gain > 1) == (share > break_even(ratio))


@given(chances, lengths, ratios)
def test_a_measured_gain_gives_the_same_break_even_as_the_arithmetic_that_made_it(
    chance: float, length: int, ratio: float
) -> None:
    share = share_accepted(chance, length)
    found = break_even_measured(estimate_gain(chance, length, ratio), share, length)
    assert found == pytest.approx(ratio, abs=1e-6)
