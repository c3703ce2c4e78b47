from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from velollm.tune.judge import Noise, judge, promises

LOGS = st.lists(st.floats(-0.5, 0.5), min_size=0, max_size=12)


@given(LOGS)
def test_a_judgement_is_the_mirror_of_the_other_sides(differences: list[float]) -> None:
    ours, theirs = judge(differences, Noise()), judge([-d for d in differences], Noise())
    mirror = {"better": "worse", "worse": "better", "even": "even", "open": "open"}
    assert theirs.standing == mirror[ours.standing]
    assert ours.rounds == len(differences)
    if ours.low is not None and ours.ratio is not None and ours.high is not None:
        assert ours.low <= ours.ratio <= ours.high


def test_one_round_proves_nothing() -> None:
    assert judge([2.0], Noise()).standing == "open"
    assert not promises(judge([2.0], Noise()))


def test_two_that_agree_by_chance_do_not_stand_alone() -> None:
    assert judge([0.02, 0.0200001], Noise()).standing == "open"
    assert judge([math.log(1.6), math.log(1.5)], Noise()).standing == "better"
    assert judge([-0.4, -0.3], Noise(squares=3.0)).standing == "worse"


def test_what_is_within_a_hundredth_is_even() -> None:
    quiet = Noise(squares=3 * 0.002**2)
    assert judge([0.001, -0.001, 0.0005, -0.0008], quiet).standing == "even"


def test_false_winners_are_as_rare_as_said() -> None:
    """Of equal settings at 5% noise, one in twenty at most may seem better in each look."""
    draw = random.Random(7)
    better = 0
    for _ in range(2000):
        noise = Noise()
        noise.learn([draw.gauss(0, 0.05) for _ in range(4)])
        better += judge([draw.gauss(0, 0.05) for _ in range(6)], noise).standing == "better"
    assert better / 2000 < 0.05


def test_a_tenth_is_found_at_usual_noise() -> None:
    draw = random.Random(8)
    found = sum(judge([draw.gauss(0.1, 0.05) for _ in range(6)], Noise()).standing == "better" for _ in range(500))
    assert found / 500 > 0.9


def test_noise_is_learned_from_pairs_near_each_other_only() -> None:
    noise = Noise()
    noise.learn([3.0, 1.0, 5.0])
    noise.learn([0.1])
    assert noise.deviation == Noise().deviation
    noise.learn([0.2, -0.2, 0.2, -0.2])
    assert noise.deviation > 0.1
