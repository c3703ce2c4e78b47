"""Law 4: never slower, and nothing for speed that is not proved faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest

from velollm.bench.result import BenchResult
from velollm.bench.samples import METRICS, Sample
from velollm.bench.sizes import Sizes
from velollm.knobs import Choice, Knobs, KnobValue
from velollm.plan import Plan, load_profile
from velollm.tune.keep import Decision, decide, speed_knobs_against

DEFAULT: Knobs = {"threads": 2, "context_tokens": 4096, "slots": 1}
ROUNDS = 6
# Small swings from round to round, as every measurement has.
SWING = (1.0, 1.02, 0.99, 1.01, 0.98, 1.0)


def plan(knobs: Knobs, *, profile: str = "chat", pins: Knobs | None = None) -> Plan:
    choices = tuple(Choice(name, value, "a test", "table") for name, value in knobs.items())
    return Plan("embedded", load_profile(profile), choices, DEFAULT, pins=pins or {})


def result(speeds: Mapping[str, Sequence[float | None] | float], metric: str = "decode") -> BenchResult:
    """A comparison in which each arm gave these figures; one number stands for steady rounds around it."""
    field = METRICS[metric].field
    samples = []
    for arm, given in speeds.items():
        values = [given * swing for swing in SWING] if isinstance(given, (int, float)) else given
        for number, value in enumerate(values):
            figures: dict[str, Any] = {field: value}
            samples.append(Sample(arm, "chat", number, 0, **figures))
    sizes = Sizes(0, ROUNDS, 256, 64, 6.0, 0, 0, 0)
    return BenchResult("chat", tuple(speeds), "default", "tuned", tuple(samples), sizes, (), 1.0, 9.0, quick=False)


def verdict(
    tuned: Knobs,
    speeds: Mapping[str, Sequence[float | None] | float],
    *,
    current: Knobs | None = None,
    profile: str = "chat",
    asked: Knobs | None = None,
    pins: Knobs | None = None,
) -> Decision:
    baselines = {"default": DEFAULT} | ({"current": current} if current is not None else {})
    made = plan({**DEFAULT, **tuned}, profile=profile, pins=pins if pins is not None else asked)
    return decide(made, result(speeds, made.profile.metric), baselines, asked or {})


SPEED: dict[str, KnobValue] = {"threads": 1}
ENABLES: dict[str, KnobValue] = {"context_tokens": 8192}
NOISY = [10.0, 30.0, 8.0, 33.0, 9.0, 31.0]


@pytest.mark.parametrize(
    ("tuned", "speed", "action", "words"),
    [
        (SPEED, 20.0, "keep", "proved faster than with the engine's default (2.00x, 95% between"),
        (SPEED, 10.0, "drop_speed", "not proved faster"),
        (SPEED, 5.0, "drop_speed", "not proved faster"),
        (SPEED, NOISY, "drop_speed", "not proved faster"),
        (SPEED | ENABLES, 20.0, "keep", "proved faster"),
        (SPEED | ENABLES, 10.0, "drop_speed", "not proved faster"),
        (ENABLES, 20.0, "keep", "proved faster"),
        (ENABLES, 10.0, "keep", "not proved slower"),
        (ENABLES, NOISY, "keep", "not proved slower"),
        (ENABLES, 9.7, "keep", "the profile accepts that"),
        (ENABLES, 9.0, "leave", "decode is slower than with the engine's default (0.90x"),
    ],
)
def test_against_the_default(
    tuned: Knobs,
    speed: float | list[float | None],
    action: Literal["keep", "drop_speed", "leave"],
    words: str,
) -> None:
    # Steady arms swing alike, so that a ratio of 0.97 is proved.
    found = verdict(tuned, {"default": 10.0, "tuned": speed})
    assert found.action == action
    assert words in found.reason


def test_a_knob_for_speed_must_also_beat_what_is_set_now() -> None:
    speeds = {"default": 10.0, "current": 30.0, "tuned": 20.0}
    found = verdict(SPEED, speeds, current={**DEFAULT, "threads": 3})
    assert found.action == "drop_speed"
    assert "not proved faster than with what is set now" in found.reason
    assert verdict(SPEED, {**speeds, "current": 15.0}, current={**DEFAULT, "threads": 3}).action == "keep"


def test_a_speed_knob_that_is_set_already_needs_no_proof_against_itself() -> None:
    speeds = {"default": 10.0, "current": 20.0, "tuned": 20.0}
    assert verdict(SPEED | ENABLES, speeds, current={**DEFAULT, **SPEED}).action == "keep"


def test_never_slower_than_what_is_set_now() -> None:
    found = verdict(ENABLES, {"default": 10.0, "current": 20.0, "tuned": 15.0}, current={**DEFAULT, "slots": 2})
    assert found.action == "leave"
    assert "slower than with what is set now" in found.reason


def test_what_the_user_asked_for_is_kept_with_its_price() -> None:
    found = verdict(ENABLES, {"default": 10.0, "tuned": 5.0}, asked=ENABLES)
    assert found.action == "keep"
    assert "slower than with the engine's default (0.50x" in found.reason
    assert "you asked for it with --set" in found.reason


def test_a_pinned_speed_knob_needs_no_proof() -> None:
    assert verdict(SPEED, {"default": 10.0, "tuned": 10.0}, asked=SPEED).action == "keep"
    assert verdict(SPEED, {"default": 10.0, "tuned": 5.0}, asked=SPEED).action == "keep"
    others = verdict({**SPEED, "batch": 1024}, {"default": 10.0, "tuned": 10.0}, asked=SPEED)
    assert others.action == "drop_speed"


def test_what_the_user_had_set_is_no_word_for_a_slower_plan() -> None:
    assert verdict(ENABLES, {"default": 10.0, "tuned": 5.0}, pins={"slots": 1}).action == "leave"


def test_the_profile_chooses_the_ratio() -> None:
    found = verdict(ENABLES, {"default": 10.0, "tuned": 20.0}, profile="throughput")
    metric = load_profile("throughput").metric
    assert metric != "decode"
    assert found.action == "keep"
    assert "decode" not in found.reason


def test_a_figure_where_less_is_better_is_turned_round() -> None:
    made = plan({**DEFAULT, **SPEED})
    made = replace(made, profile=replace(made.profile, metric="ttft"))
    slow = decide(made, result({"default": 1.0, "tuned": 2.0}, "ttft"), {"default": DEFAULT}, {})
    fast = decide(made, result({"default": 2.0, "tuned": 1.0}, "ttft"), {"default": DEFAULT}, {})
    assert (slow.action, fast.action) == ("drop_speed", "keep")
    assert fast.reason.startswith("time to first token is proved faster")


def test_too_few_rounds_prove_nothing() -> None:
    few: dict[str, list[float | None]] = {"default": [10.0, 10.0], "tuned": [20.0, 20.0]}
    assert verdict(SPEED, few).action == "drop_speed"
    assert verdict(ENABLES, few).action == "keep"
    assert "2.00x)" in verdict(ENABLES, few).reason


def test_failed_rounds_prove_nothing() -> None:
    failed: list[float | None] = [None] * ROUNDS
    found = verdict(SPEED, {"default": 10.0, "tuned": failed})
    assert found.action == "drop_speed"
    assert "not measured" in found.reason


def test_speed_knobs_against() -> None:
    made = plan({**DEFAULT, "threads": 1, "batch": 1024, "slots": 4}, pins={"batch": 1024})
    assert speed_knobs_against(made, DEFAULT) == ("threads",)
    assert speed_knobs_against(made, {"threads": 1}) == ()
