"""How sure a difference is: intervals that hold for few samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from velollm.bench.samples import ANSWER_TTFT, METRICS, Metric, Sample, value_of

Verdict = Literal["faster", "slower", "no difference"]

LEAST_PAIRS = 3
"""Fewer values than this give no interval, and fewer pairs no verdict."""

_RESAMPLES = 4000
_SEED = 20_240_229
_TAIL = 0.025
_Z = 1.959964
# Student's t, two-sided 95%, for 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook, section 1.3.6.7.2.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """An average (geometric mean) with its 95% interval; None where there are too few ``values`` to tell."""

    estimate: float | None
    low: float | None
    high: float | None
    values: int


@dataclass(frozen=True)
class Ratio:
    """Tuned against default, turned so that above 1 is better for every metric.

    ``estimate`` is the geometric mean of the ratios within each of ``pairs`` rounds.
    """

    estimate: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    pairs: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Geometric mean of positive values, with a 95% interval that holds for few of them.

    Bootstrap of the mean logarithm (percentiles of `_RESAMPLES` resamples, a fixed seed). With n = 5 plain
    percentiles cover 84% instead of 95%, so their distance from the mean is stretched by
    sqrt(n / (n - 1)) * t / z (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 4),
    and neither end is nearer than Student's t puts it. `tests/bench/test_stats.py` counts the coverage.
    """
    count = len(values)
    if count == 0:
        return Interval(None, None, None, 0)
    logs: NDArray[np.float64] = np.log(np.asarray(values, dtype=np.float64))
    mean = float(logs.mean())
    if count < LEAST_PAIRS:
        return Interval(math.exp(mean), None, None, count)
    low, high = _log_interval(logs, mean)
    return Interval(math.exp(mean), math.exp(low), math.exp(high), count)


def ratio_of_pairs(pairs: Sequence[tuple[float, float]], *, higher_is_better: bool) -> Ratio:
    """Ratio of (default, tuned) pairs, one of each round, with its verdict.

    ``faster`` only where the whole interval lies above 1, ``slower`` where it lies below.
    """
    turned = [(tuned / default) if higher_is_better else (default / tuned) for default, tuned in pairs]
    found = mean_interval(turned)
    return Ratio(found.estimate, found.low, found.high, verdict_of(found), found.values)


def verdict_of(interval: Interval) -> Verdict:
    """What an interval of a ratio proves."""
    if interval.low is not None and interval.low > 1:
        return "faster"
    if interval.high is not None and interval.high < 1:
        return "slower"
    return "no difference"


def metric_of(name: str) -> Metric:
    """One of `METRICS`, or the time to the first token of the answer."""
    return ANSWER_TTFT if name == ANSWER_TTFT.name else METRICS[name]


def compare_arms(samples: Iterable[Sample], default: str, tuned: str, metric: str) -> Ratio:
    """Ratio of two arms for one of `METRICS`, over the rounds in which both gave the figure."""
    chosen = metric_of(metric)
    by_round = _by_round(samples, chosen, (default, tuned))
    pairs = [(found[default], found[tuned]) for _, found in sorted(by_round.items()) if len(found) == 2]
    return ratio_of_pairs(pairs, higher_is_better=chosen.higher_is_better)


def summarise(samples: Iterable[Sample], arm: str, metric: str) -> Interval:
    """One arm's figure for one of `METRICS`, with the interval over its rounds."""
    chosen = metric_of(metric)
    values = (value_of(sample, chosen) for sample in samples if sample.arm == arm)
    return mean_interval([value for value in values if value is not None])


def peak_memory_bytes(samples: Iterable[Sample], arm: str) -> int | None:
    """The most memory that an arm's server held: the kernel's own mark, so it has no interval."""
    peaks = [sample.peak_memory_bytes for sample in samples if sample.arm == arm]
    return max((peak for peak in peaks if peak is not None), default=None)


def _by_round(samples: Iterable[Sample], metric: Metric, arms: tuple[str, str]) -> dict[int, dict[str, float]]:
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        value = value_of(sample, metric)
        if sample.arm in arms and value is not None:
            by_round.setdefault(sample.round, {})[sample.arm] = value
    return by_round


def _log_interval(logs: NDArray[np.float64], mean: float) -> tuple[float, float]:
    count = len(logs)
    student = _student_t(count - 1)
    deviations = (logs - mean)[_draws(count)].mean(axis=1)
    low, high = np.quantile(deviations, (_TAIL, 1 - _TAIL))
    stretch = math.sqrt(count / (count - 1)) * student / _Z
    reach = student * float(logs.std(ddof=1)) / math.sqrt(count)
    return mean + min(float(low) * stretch, -reach), mean + max(float(high) * stretch, reach)


@cache
def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))


def _student_t(freedom: int) -> float:
    """97.5% point of Student's t; above 30 degrees its expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + (_Z**3 + _Z) / (4 * freedom) + second / freedom**2
