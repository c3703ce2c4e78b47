"""The arithmetic of drafting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.models.speculation import (
    chance_of,
    share_accepted,
    tokens_per_pass,
)

chances = st.floats(0, 1)
lengths = st.integers(1, 32)


def test_known_values() -> None:
    assert tokens_per_pass(0.5, 1) == 1.5
    assert tokens_per_pass(0.5, 2) == 1.75
    assert tokens_per_pass(1.0, 4) == 5.0
    assert tokens_per_pass(0.0, 4) == 1.0
    # As counted by a real engine with made drafts that agree so far: 628 of 970, and 94 of 2,552.
    assert share_accepted(0.8, 3) == pytest.approx(628 / 970, abs=0.005)
    assert share_accepted(0.1, 3) == pytest.approx(94 / 2552, abs=0.001)


@given(chances, lengths)
def test_tokens_are_the_sum_of_the_chances_to_get_so_far(chance: float, length: int) -> None:
    assert tokens_per_pass(chance, length) == pytest.approx(sum(chance**n for n in range(length + 1)), rel=1e-6)
    assert 0 <= share_accepted(chance, length) <= 1 + 1e-12


@given(chances, lengths)
def test_the_chance_comes_back_from_what_was_accepted(chance: float, length: int) -> None:
    share = share_accepted(chance, length)
    assert share_accepted(chance_of(share, length), length) == pytest.approx(share, abs=1e-6)
