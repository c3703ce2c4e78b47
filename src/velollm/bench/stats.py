"""How sure a difference is: medians, intervals that hold for few samples, and the machine's own noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from velollm.bench.samples import CONTROL, Metric, Sample, metric_of, value_of

Verdict = Literal["faster", "slower", "no difference"]
FloorBasis = Literal["control", "split", "apart"]
Array = NDArray[np.float64]

LEAST_PAIRS = 3
"""Fewer values than this give no interval, and fewer pairs no verdict."""

_LEAST_SPLIT = 4
_FEW = 8
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
    """A median with its 95% interval; None where there are too few ``values`` to tell.

    ``spread``: half the distance between the quartiles over the median, so outliers do not count; None below
    four values.
    """

    estimate: float | None
    low: float | None
    high: float | None
    values: int
    spread: float | None = None

    @property
    def reach(self) -> float | None:
        """How far the interval goes from its estimate, as a share of it, on its wider side."""
        if self.estimate is None or self.low is None or self.high is None:
            return None
        return max(self.high / self.estimate, self.estimate / self.low) - 1


@dataclass(frozen=True)
class Ratio:
    """One arm against another, turned so that above 1 is better for every metric.

    ``estimate`` is the ratio of the medians over ``pairs`` rounds. ``floor``: the machine's own noise as a ratio of at
    least 1, told by an arm against itself; a verdict needs the interval to lie beyond it. ``floor_basis``: a
    ``control`` in the same run, a ``split`` of the arms' own rounds, or what runs ``apart`` differ by; None: too few
    rounds to tell.
    """

    estimate: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    pairs: int
    floor: float | None = None
    floor_basis: FloorBasis | None = None

    @property
    def interval(self) -> Interval:
        """The ratio without its verdict."""
        return Interval(self.estimate, self.low, self.high, self.pairs)


@dataclass(frozen=True)
class Floor:
    """What an arm against itself showed: ``ratio`` of at least 1, and where it is from."""

    ratio: float
    basis: FloorBasis


def median_interval(values: Sequence[float]) -> Interval:
    """Median of positive values, with a 95% interval that holds for few of them."""
    count = len(values)
    if count == 0:
        return Interval(None, None, None, 0)
    logs = _logs(values)
    median = float(np.median(logs))
    if count < LEAST_PAIRS:
        return Interval(math.exp(median), None, None, count)
    low, high = _reach([logs], logs)
    return Interval(
        math.exp(median), math.exp(median + low), math.exp(median + high), count, _spread(values, math.exp(median))
    )


def ratio_of_rounds(
    rounds: Sequence[tuple[Sequence[float], float]], *, higher_is_better: bool, floor: Floor | None = None
) -> Ratio:
    """Ratio of medians over rounds of (the baseline's values, the other arm's value), with its verdict.

    The baseline has two values in a round where its control ran too. ``faster`` only where the whole interval lies
    above 1 and above the floor, ``slower`` where it lies below both.
    """
    count, sign = len(rounds), 1.0 if higher_is_better else -1.0
    if count == 0:
        return Ratio(None, None, None, "no difference", 0, *_floor_fields(floor))
    ours = sign * _logs([value for _, value in rounds])
    # Log of the baseline: one column for each of its visits.
    columns = [sign * _logs(column) for column in zip(*(values for values, _ in rounds), strict=True)]
    estimate = float(np.median(ours) - np.median(np.concatenate(columns)))
    if count < LEAST_PAIRS:
        return Ratio(math.exp(estimate), None, None, "no difference", count, *_floor_fields(floor))
    low, high = _reach([ours, *columns], ours - np.mean(columns, axis=0))
    interval = Interval(math.exp(estimate), math.exp(estimate + low), math.exp(estimate + high), count)
    return Ratio(
        interval.estimate, interval.low, interval.high, verdict_of(interval, floor), count, *_floor_fields(floor)
    )


def ratio_of_sets(
    before: Sequence[float], after: Sequence[float], *, higher_is_better: bool, floor: Floor | None = None
) -> Ratio:
    """Ratio of the medians of two runs that did not take turns, with its verdict; above 1 ``after`` is better.

    The bootstrap draws from each run by itself, stretched as in `_reach` by the smaller one's number of values. Where a
    run has fewer than `_FEW`, no side is shorter than Welch's t interval (Welch, Biometrika 34, 1947), with the smaller
    one's degrees of freedom.
    """
    count, sign = min(len(before), len(after)), 1.0 if higher_is_better else -1.0
    if count == 0:
        return Ratio(None, None, None, "no difference", 0, *_floor_fields(floor))
    sides = [sign * _logs(before), sign * _logs(after)]
    estimate = float(np.median(sides[1]) - np.median(sides[0]))
    if count < LEAST_PAIRS:
        return Ratio(math.exp(estimate), None, None, "no difference", count, *_floor_fields(floor))
    medians = [np.median(side[_draws(len(side), place)], axis=1) for place, side in enumerate(sides)]
    low, high = np.quantile(medians[1] - medians[0] - estimate, (_TAIL, 1 - _TAIL))
    if count < _FEW:
        reach = student_t(count - 1) * math.sqrt(sum(float(side.var(ddof=1)) / len(side) for side in sides))
        low, high = min(float(low), -reach), max(float(high), reach)
    else:
        low, high = min(float(low), 0.0) * _stretch(count), max(float(high), 0.0) * _stretch(count)
    interval = Interval(math.exp(estimate), math.exp(estimate + low), math.exp(estimate + high), count)
    return Ratio(
        interval.estimate, interval.low, interval.high, verdict_of(interval, floor), count, *_floor_fields(floor)
    )


def verdict_of(interval: Interval, floor: Floor | None = None) -> Verdict:
    """What an interval of a ratio proves, where the machine alone makes ``floor``."""
    noise = floor.ratio if floor else 1.0
    if interval.low is not None and interval.low > noise:
        return "faster"
    if interval.high is not None and interval.high < 1 / noise:
        return "slower"
    return "no difference"


def compare_arms(samples: Iterable[Sample], baseline: str, other: str, metric: str) -> Ratio:
    """Ratio of two arms for a metric, over the rounds in which both gave the figure.

    Where the baseline ran a second time in each round (`CONTROL`), both visits count as it, and their difference is
    the floor; else the floor comes from the arms' own rounds, split in two.
    """
    chosen, samples = metric_of(metric), list(samples)
    names = control_names(samples, baseline)
    by_round = _by_round(samples, chosen, (*names, other))
    whole = [found for _, found in sorted(by_round.items()) if len(found) == len(names) + 1]
    rounds = [([found[name] for name in names], found[other]) for found in whole]
    floor = noise_floor(samples, baseline, chosen, other)
    return ratio_of_rounds(rounds, higher_is_better=chosen.higher_is_better, floor=floor)


def control_names(samples: Iterable[Sample], baseline: str) -> tuple[str, ...]:
    """The baseline's name, and its control's where it had one."""
    control = f"{baseline}{CONTROL}"
    return (baseline, control) if any(sample.arm == control for sample in samples) else (baseline,)


def compare_control(samples: Iterable[Sample], baseline: str, metric: str) -> Ratio | None:
    """The baseline's second visit against its first: what the machine alone does to a figure. None without one."""
    chosen, samples = metric_of(metric), list(samples)
    names = control_names(samples, baseline)
    if len(names) == 1:
        return None
    by_round = _by_round(samples, chosen, names)
    rounds = [([found[names[0]]], found[names[1]]) for _, found in sorted(by_round.items()) if len(found) == 2]
    return ratio_of_rounds(rounds, higher_is_better=chosen.higher_is_better)


def noise_floor(samples: Sequence[Sample], baseline: str, metric: Metric, other: str) -> Floor | None:
    """The ratio that the machine makes by itself; None where there are too few rounds to tell.

    With a control: its ratio to the baseline, or the far end of that ratio's interval where even the two are told
    apart. Without: the first against the second place of an arm's rounds, the larger of both arms', over the square
    root of two, because each half has half of the rounds.
    """
    control = compare_control(samples, baseline, metric.name)
    if control is not None and control.estimate is not None:
        ends = [control.estimate] if control.verdict == "no difference" else [control.low or 1.0, control.high or 1.0]
        return Floor(max(max(end, 1 / end) for end in ends), "control")
    found = [split for arm in (baseline, other) if (split := _split(samples, arm, metric)) is not None]
    return Floor(math.exp(max(found)), "split") if found else None


def _split(samples: Sequence[Sample], arm: str, metric: Metric) -> float | None:
    """Distance between the medians of every second round, in logarithms."""
    values = [
        value
        for sample in sorted(samples, key=lambda sample: sample.round)
        if sample.arm == arm and (value := value_of(sample, metric)) is not None
    ]
    if len(values) < _LEAST_SPLIT:
        return None
    logs = _logs(values)
    return abs(float(np.median(logs[::2]) - np.median(logs[1::2]))) / math.sqrt(2)


def summarise(samples: Iterable[Sample], arm: str, metric: str) -> Interval:
    """One arm's figure for a metric, with the interval over its rounds."""
    chosen = metric_of(metric)
    values = (value_of(sample, chosen) for sample in samples if sample.arm == arm)
    return median_interval([value for value in values if value is not None])


def outliers_of(samples: Iterable[Sample], arm: str, metric: str) -> tuple[tuple[int, float], ...]:
    """Rounds of an arm whose figure lies far out, and the figure. They are shown and they count.

    Far out: more than 3 times the quartiles' distance beyond a quartile (Tukey, "Exploratory Data Analysis", 1977).
    """
    chosen = metric_of(metric)
    found = [(s.round, value) for s in samples if s.arm == arm and (value := value_of(s, chosen)) is not None]
    if len(found) < _LEAST_SPLIT:
        return ()
    low, high = np.quantile([value for _, value in found], (0.25, 0.75))
    fence = 3 * (high - low)
    return tuple((number, value) for number, value in found if not low - fence <= value <= high + fence)


def peak_memory_bytes(samples: Iterable[Sample], arm: str) -> int | None:
    """The most memory that an arm's server held: the kernel's own mark, so it has no interval."""
    peaks = [sample.peak_memory_bytes for sample in samples if sample.arm == arm]
    return max((peak for peak in peaks if peak is not None), default=None)


def _by_round(samples: Iterable[Sample], metric: Metric, arms: Sequence[str]) -> dict[int, dict[str, float]]:
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        value = value_of(sample, metric)
        if sample.arm in arms and value is not None:
            by_round.setdefault(sample.round, {})[sample.arm] = value
    return by_round


def _logs(values: Sequence[float]) -> Array:
    return np.log(np.asarray(values, dtype=np.float64))


def _spread(values: Sequence[float], median: float) -> float | None:
    if len(values) < _LEAST_SPLIT:
        return None
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low) / 2 / median


def _reach(columns: Sequence[Array], differences: Array) -> tuple[float, float]:
    """How far below and above the estimate the 95% interval goes.

    ``columns``: the first one's median less the median of all others together is the estimate (one column: its own
    median). Bootstrap over rounds (`_RESAMPLES` resamples of whole rounds, a fixed seed). Plain percentiles cover a
    little less than they say, so their distance is stretched by sqrt(n / (n - 1)) * t / z (Hesterberg, "What Teachers
    Should Know About the Bootstrap", 2015, section 4). The median of fewer than `_FEW` values takes too few different
    values for that: there no side is shorter than Student's t of the ``differences`` within rounds instead.
    `tests/bench/test_stats.py` counts the coverage.
    """
    count = len(differences)
    found = _estimates([column[_draws(count)] for column in columns])
    low, high = np.quantile(found - _estimates([column[None, :] for column in columns]), (_TAIL, 1 - _TAIL))
    if count < _FEW:
        reach = student_t(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
        return min(float(low), -reach), max(float(high), reach)
    return min(float(low), 0.0) * _stretch(count), max(float(high), 0.0) * _stretch(count)


def _stretch(count: int) -> float:
    return math.sqrt(count / (count - 1)) * student_t(count - 1) / _Z


def _estimates(drawn: Sequence[Array]) -> Array:
    first: Array = np.median(drawn[0], axis=1)
    return first - np.median(np.concatenate(drawn[1:], axis=1), axis=1) if len(drawn) > 1 else first


def _floor_fields(floor: Floor | None) -> tuple[float | None, FloorBasis | None]:
    return (floor.ratio, floor.basis) if floor else (None, None)


@cache
def _draws(count: int, stream: int = 0) -> NDArray[np.int64]:
    """Places to draw; another ``stream`` draws independently."""
    return np.random.default_rng(_SEED + stream).integers(0, count, (_RESAMPLES, count))


def student_t(freedom: int) -> float:
    """97.5% point of Student's t; above 30 degrees its expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + (_Z**3 + _Z) / (4 * freedom) + second / freedom**2
