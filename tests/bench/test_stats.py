from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from velollm.bench.samples import CrowdFigures, Sample, metric_of, value_of
from velollm.bench.stats import (
    Interval,
    Ratio,
    compare_arms,
    compare_control,
    median_interval,
    outliers_of,
    peak_memory_bytes,
    ratio_of_rounds,
    student_t,
    summarise,
    verdict_of,
)

figures = st.floats(1e-3, 1e6)
values = st.lists(figures, min_size=3, max_size=20)
pairs = st.lists(st.tuples(figures, figures), min_size=3, max_size=20)


def ratio_of_pairs(found: Sequence[tuple[float, float]], *, higher_is_better: bool) -> Ratio:
    return ratio_of_rounds([([default], tuned) for default, tuned in found], higher_is_better=higher_is_better)


def covers(noise: str, count: int, rounds: int = 500) -> tuple[float, float]:
    """Share of intervals that hold a true ratio of 1.1, and share of false `faster` for a true ratio of 1."""
    rng = np.random.default_rng(7)
    draw: Callable[[], NDArray[np.float64]] = {
        "normal": lambda: rng.normal(0, 0.1, count),
        "heavy tails": lambda: 0.1 * rng.standard_t(3, count),
        "late answers": lambda: np.log1p(0.2 * rng.exponential(1, count)) - np.log1p(0.2 * rng.exponential(1, count)),
    }[noise]
    held = false = 0
    for _ in range(rounds):
        found = median_interval(list(np.exp(draw())))
        assert found.low is not None
        assert found.high is not None
        held += found.low * 1.1 <= 1.1 <= found.high * 1.1
        false += verdict_of(found) == "faster"
    return held / rounds, false / rounds


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "late answers"])
@pytest.mark.parametrize("count", [3, 5, 8])
def test_intervals_hold_95_percent_for_few_samples(noise: str, count: int) -> None:
    held, false = covers(noise, count)
    # 500 trials: the standard error of a share of 95% is 1%.
    assert held >= 0.94
    assert false <= 0.035


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        noise = np.exp(rng.normal(0, 0.05, (5, 2)))
        ratio = ratio_of_pairs([(40 * a, 48 * b) for a, b in noise], higher_is_better=True)
        found += ratio.verdict == "faster"
        assert ratio.verdict != "slower"
    assert found / 300 >= 0.9


@given(values)
def test_interval_holds_its_estimate(sample: list[float]) -> None:
    found = median_interval(sample)
    assert found.estimate is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.estimate * (1 + 1e-9)
    assert found.high >= found.estimate * (1 - 1e-9)
    assert min(sample) * (1 - 1e-9) <= found.estimate <= max(sample) * (1 + 1e-9)
    assert found == median_interval(sample), "the same values gave another interval"


@given(pairs, st.booleans())
def test_swapping_the_arms_inverts_the_ratio(sample: list[tuple[float, float]], higher: bool) -> None:
    one = ratio_of_pairs(sample, higher_is_better=higher)
    other = ratio_of_pairs([(tuned, default) for default, tuned in sample], higher_is_better=higher)
    assert one.estimate == pytest.approx(1 / other.estimate)  # type: ignore[operator]
    assert math.log(one.low) == pytest.approx(-math.log(other.high), rel=1e-6, abs=1e-6)  # type: ignore[arg-type]
    assert math.log(one.high) == pytest.approx(-math.log(other.low), rel=1e-6, abs=1e-6)  # type: ignore[arg-type]


@given(pairs, st.floats(1e-3, 1e3))
def test_another_unit_changes_no_ratio(sample: list[tuple[float, float]], factor: float) -> None:
    one = ratio_of_pairs(sample, higher_is_better=True)
    other = ratio_of_pairs([(a * factor, b * factor) for a, b in sample], higher_is_better=True)
    assert one.estimate == pytest.approx(other.estimate)
    assert math.log(one.low) == pytest.approx(math.log(other.low), rel=1e-6, abs=1e-6)  # type: ignore[arg-type]


@given(pairs)
def test_less_time_counts_as_better(sample: list[tuple[float, float]]) -> None:
    time = ratio_of_pairs(sample, higher_is_better=False)
    rate = ratio_of_pairs([(1 / default, 1 / tuned) for default, tuned in sample], higher_is_better=True)
    assert time.estimate == pytest.approx(rate.estimate)


def test_verdicts() -> None:
    assert verdict_of(Interval(1.2, 1.1, 1.3, 5)) == "faster"
    assert verdict_of(Interval(0.8, 0.7, 0.9, 5)) == "slower"
    assert verdict_of(Interval(1.2, 0.9, 1.5, 5)) == "no difference"
    assert verdict_of(Interval(1.0, 1.0, 1.0, 5)) == "no difference"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_pairs_prove_nothing(count: int) -> None:
    ratio = ratio_of_pairs([(1.0, 50.0)] * count, higher_is_better=True)
    assert (ratio.low, ratio.high, ratio.verdict, ratio.pairs) == (None, None, "no difference", count)
    assert ratio.estimate == (pytest.approx(50.0) if count else None)


def teststudent_t_goes_over_into_its_expansion_smoothly() -> None:
    points = [student_t(freedom) for freedom in range(1, 60)]
    assert points == sorted(points, reverse=True)
    assert student_t(31) == pytest.approx(2.0395, abs=1e-3)
    assert student_t(120) == pytest.approx(1.9799, abs=1e-3)


def sample_of(arm: str, round_index: int, **values: float | None) -> Sample:
    return Sample(arm, "chat", round_index, 0, **values)  # type: ignore[arg-type]


def test_only_rounds_with_both_figures_are_paired() -> None:
    samples = [
        *(sample_of("default", n, decode_tokens_per_s=10.0 + n) for n in range(6)),
        *(sample_of("tuned", n, decode_tokens_per_s=None if n == 2 else 20.0 + 2 * n) for n in reversed(range(6))),
        sample_of("current", 0, decode_tokens_per_s=1.0),
    ]
    ratio = compare_arms(samples, "default", "tuned", "decode")
    assert ratio.pairs == 5
    assert ratio.estimate == pytest.approx(2.0)
    assert summarise(samples, "tuned", "decode").values == 5


def test_ttft_is_turned_so_that_less_is_better() -> None:
    samples = [sample_of(arm, n, ttft_s=s) for n in range(5) for arm, s in (("default", 2.0), ("tuned", 1.0))]
    assert compare_arms(samples, "default", "tuned", "ttft").estimate == pytest.approx(2.0)
    assert compare_arms(samples, "default", "tuned", "ttft").verdict == "faster"


def test_peak_memory_is_the_most_that_was_seen() -> None:
    samples = [Sample("default", "chat", n, 0, peak_memory_bytes=peak) for n, peak in enumerate((None, 5, 9, 7))]
    assert peak_memory_bytes(samples, "default") == 9
    assert peak_memory_bytes(samples, "tuned") is None


def noisy(rng: np.random.Generator, rounds: int, arms: dict[str, float], noise: float = 0.05) -> list[Sample]:
    """Rounds of arms with these true rates, each with noise of its own."""
    return [
        sample_of(arm, n, decode_tokens_per_s=rate * math.exp(rng.normal(0, noise)))
        for n in range(rounds)
        for arm, rate in arms.items()
    ]


def test_the_estimate_is_the_ratio_of_the_medians_of_all_visits() -> None:
    samples = [
        *(sample_of("default", n, decode_tokens_per_s=v) for n, v in enumerate((10.0, 11.0, 12.0, 90.0))),
        *(sample_of("default-control", n, decode_tokens_per_s=v) for n, v in enumerate((10.5, 11.5, 12.5, 1.0))),
        *(sample_of("tuned", n, decode_tokens_per_s=v) for n, v in enumerate((22.0, 23.0, 23.0, 24.0))),
    ]
    ratio = compare_arms(samples, "default", "tuned", "decode")
    assert ratio.estimate == pytest.approx(23.0 / math.sqrt(11.0 * 11.5))
    assert ratio.floor_basis == "control"


def test_an_outlier_is_shown_and_moves_no_median() -> None:
    values = [10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 2.0]
    samples = [sample_of("default", n, decode_tokens_per_s=v) for n, v in enumerate(values)]
    assert outliers_of(samples, "default", "decode") == ((6, 2.0),)
    assert summarise(samples, "default", "decode").estimate == pytest.approx(10.0)
    assert summarise(samples, "default", "decode").values == 7


def test_no_verdict_within_what_the_same_settings_differ_by() -> None:
    arms = {"default": 40.0, "default-control": 44.0, "tuned": 43.0}
    rounds = [(n, arm, rate + 0.01 * n) for n in range(8) for arm, rate in arms.items()]
    samples = [sample_of(arm, n, decode_tokens_per_s=rate) for n, arm, rate in rounds]
    noise = compare_control(samples, "default", "decode")
    assert noise is not None
    assert noise.verdict == "faster"
    ratio = compare_arms(samples, "default", "tuned", "decode")
    assert ratio.verdict == "no difference"
    assert ratio.floor is not None
    assert ratio.floor >= 1.09
    far = [sample_of(s.arm, s.round, decode_tokens_per_s=60.0) if s.arm == "tuned" else s for s in samples]
    assert compare_arms(far, "default", "tuned", "decode").verdict == "faster"


def test_without_a_control_the_floor_comes_from_the_rounds_split_in_two() -> None:
    values = [10.0, 11.0] * 4
    samples = [sample_of(arm, n, decode_tokens_per_s=v) for arm in ("default", "tuned") for n, v in enumerate(values)]
    ratio = compare_arms(samples, "default", "tuned", "decode")
    assert ratio.floor == pytest.approx(1.1 ** (1 / math.sqrt(2)))
    assert ratio.floor_basis == "split"
    assert compare_arms(samples[:3] + samples[8:11], "default", "tuned", "decode").floor is None


def test_same_arms_are_hardly_ever_told_apart() -> None:
    rng = np.random.default_rng(11)
    arms = {"default": 40.0, "default-control": 40.0, "tuned": 40.0}
    verdicts = [compare_arms(noisy(rng, 8, arms), "default", "tuned", "decode").verdict for _ in range(300)]
    assert sum(verdict != "no difference" for verdict in verdicts) / 300 <= 0.03


def test_figures_of_any_number_of_users_have_a_name() -> None:
    assert metric_of("aggregate_16").users == 16
    assert not metric_of("worst_ttft_2").higher_is_better
    with pytest.raises(KeyError):
        metric_of("aggregate_0")
    crowded = Sample("default", "chat", 0, 0, crowds=(CrowdFigures(2, 30.0, 1.5, 0.9), CrowdFigures(8, 50.0, 4.0, 0.8)))
    assert value_of(crowded, metric_of("aggregate_8")) == 50.0
    assert value_of(crowded, metric_of("fairness_2")) == 0.9
    assert value_of(crowded, metric_of("aggregate_3")) is None
