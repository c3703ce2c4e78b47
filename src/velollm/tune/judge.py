"""What paired samples say of a challenger against the one to beat, with few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from velollm.bench.stats import student_t

Standing = Literal["better", "worse", "even", "open"]

EVEN = 0.01
"""Within this share of each other two settings count as equally fast."""

_USUAL_NOISE = 0.05
_PRIOR_ROUNDS = 3
_LEAST_ROUNDS = 2
_GROSS = 0.25
_MEDIAN_SCALE = 1.2  # a median scatters more than a mean, by up to sqrt(pi / 2)
_TAIL_SCALE = 0.85  # 90% in place of 95%: t(0.95) / t(0.975) is between 0.73 (2 degrees) and 0.84 (infinity)


@dataclass
class Noise:
    """How much two samples of one setting differ here, in logarithms: learned from all races of a run so far.

    It stands beside the few differences of each pair, so that two that agree by chance prove nothing
    (a scaled inverse chi-squared prior; Gelman et al., "Bayesian Data Analysis", 2013, section 2.6).
    """

    squares: float = _PRIOR_ROUNDS * _USUAL_NOISE**2
    freedom: int = _PRIOR_ROUNDS

    @classmethod
    def known(cls, deviation: float) -> Noise:
        """That of a race that is gone on with: the deviation that it had found."""
        return cls(_PRIOR_ROUNDS * deviation**2)

    def learn(self, differences: Sequence[float]) -> None:
        """Differences of one pair: only how they scatter around their own mean counts."""
        if len(differences) < 2 or abs(sum(differences) / len(differences)) > _GROSS:
            return  # far apart, they scatter with the machine's load rather than with the noise of a sample
        mean = sum(differences) / len(differences)
        self.squares += sum((value - mean) ** 2 for value in differences)
        self.freedom += len(differences) - 1

    @property
    def deviation(self) -> float:
        """The standard deviation of a difference."""
        return math.sqrt(self.squares / self.freedom)


@dataclass(frozen=True)
class Judgement:
    """A challenger's figure over the other's, with its 90% interval, from ``rounds`` pairs."""

    standing: Standing
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0


def judge(differences: Sequence[float], noise: Noise) -> Judgement:
    """``differences``: logarithms of the challenger's figure less those of the one to beat, one for each round.

    ``worse`` and ``better`` where the whole interval says so, or where every round differs by a quarter at least;
    ``even`` where the interval is within `EVEN`.
    """
    count = len(differences)
    if count < _LEAST_ROUNDS:
        return Judgement("open", math.exp(differences[0]) if count else None, rounds=count)
    ordered = sorted(differences)
    middle = median(ordered)
    mean = sum(differences) / count
    squares = noise.squares / noise.freedom * _PRIOR_ROUNDS + sum((value - mean) ** 2 for value in differences)
    freedom = _PRIOR_ROUNDS + count - 1
    scale = _TAIL_SCALE * (_MEDIAN_SCALE if count > 2 else 1.0)
    reach = scale * student_t(freedom) * math.sqrt(squares / freedom / count)
    ends = math.exp(middle - reach), math.exp(middle + reach)
    return Judgement(_standing(ordered, middle, reach), math.exp(middle), *ends, count)


def _standing(ordered: Sequence[float], middle: float, reach: float) -> Standing:
    if middle + reach < 0 or ordered[-1] < -_GROSS:
        return "worse"
    if middle - reach > 0 or ordered[0] > _GROSS:
        return "better"
    return "even" if middle + reach < EVEN and middle - reach > -EVEN else "open"


def promises(judgement: Judgement) -> bool:
    """Is a challenger to take the place of the one to beat, where time ended before that was sure?

    It then only stands in for it in the race; what is kept is confirmed against the default in the end.
    """
    if judgement.standing == "better":
        return True
    if judgement.ratio is None or judgement.low is None or judgement.rounds < _LEAST_ROUNDS:
        return False
    above = math.log(judgement.ratio)
    return above > EVEN and above > (above - math.log(judgement.low)) / 2
