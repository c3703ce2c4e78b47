"""What a draft would gain, by arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.draft.gain import check_ratio, estimate_gain
from velollm.models.catalog import find_catalog_model
from velollm.models.drafts import Acceptance, pairs_for
from velollm.models.speed import DeviceSpeed, Rate, Share, Shares

HALF = Share(0.5, 0.5, 0.5, 1)
SLOW = DeviceSpeed(
    "CPU", "cpu", Rate(30e9, "measured", "here"), Rate(3e11, "measured", "here"), Shares(HALF, HALF, HALF)
)


def made(low: float, high: float) -> Acceptance:
    return Acceptance(low, high, "made", ("made",))


def test_free_checking_is_the_published_formula() -> None:
    gain = estimate_gain(made(0.8, 0.8), 0.1, None, None)
    assert gain.length == 6
    assert gain.most == gain.least == pytest.approx((1 - 0.8**7) / 0.2 / 1.6)
    assert gain.break_even == pytest.approx(0.1)


def test_a_slow_processor_pays_for_checking_and_drafts_less() -> None:
    free, slow = estimate_gain(made(0.8, 0.8), 0.05, None, None), estimate_gain(made(0.8, 0.8), 0.05, 0.5, None)
    assert slow.length < free.length
    assert slow.most < free.most
    assert slow.break_even > free.break_even


def test_what_one_token_costs_to_compute() -> None:
    model = find_catalog_model("llama3.1:8b")
    assert model is not None
    found = check_ratio(model, SLOW)
    # 14 billion operations at 150 GFLOPS against 4.7 GB at 15 GB/s.
    assert found == pytest.approx(0.3, rel=0.2)
    assert check_ratio(model, None) is None
    assert check_ratio(model, DeviceSpeed("x", "cpu", None, None, Shares())) is None


def test_an_acceptance_that_was_counted_at_a_length_is_taken_from_there() -> None:
    (row,) = (pair for pair in pairs_for("llama3.1:8b") if pair.kind == "draft-simple")
    told = Acceptance(0.7206, 0.7206, "table", ("x",))
    at_five, at_default = estimate_gain(told, 0.1, None, row), estimate_gain(told, 0.1, None, None)
    # The same share of five is a greater chance for each token than of three.
    assert at_five.most > at_default.most


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 2), st.none() | st.floats(0, 3))
def test_no_gain_is_above_its_tokens_and_more_acceptance_is_no_loss(
    one: float, two: float, ratio: float, check: float | None
) -> None:
    gain = estimate_gain(made(min(one, two), max(one, two)), ratio, check, None)
    assert 0 < gain.least <= gain.most + 1e-12 <= gain.tokens_per_pass + 1e-9
    assert 0 <= gain.break_even <= 1
