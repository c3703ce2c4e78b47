"""What guessing was measured to gain, from the history."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.bench.guesses import past_guesses
from velollm.bench.history import Record
from velollm.bench.samples import Sample
from velollm.facts import PastGuess
from velollm.knobs import KnobValue

DRAFT: Mapping[str, KnobValue] = {"speculation": "draft-simple", "draft_model": "/d.gguf", "threads": 2}


def sample(arm: str, number: int, rate: float, drafted: int | None = None, accepted: int | None = None) -> Sample:
    return Sample(
        arm, "chat", number, 0, decode_tokens_per_s=rate, answer_tokens=100, drafted_tokens=drafted,
        accepted_tokens=accepted,
    )  # fmt: skip


def record(knobs: Mapping[str, Mapping[str, KnobValue]], rates: Mapping[str, float], rounds: int = 4) -> Record:
    runs = [
        sample(arm, number, rate, *((120, 60) if arm == "tuned" else ()))
        for number in range(rounds)
        for arm, rate in rates.items()
    ]
    return Record(
        id="x", taken_at="2026-11-20T10:00:00+00:00", model="m", backend="ollama", workload="chat", quick=True,
        facts={}, knobs={arm: dict(values) for arm, values in knobs.items()}, samples=tuple(runs),
    )  # fmt: skip


def test_arms_that_differ_in_guessing_alone_tell_its_gain() -> None:
    (found,) = past_guesses([record({"default": {"threads": 2}, "tuned": DRAFT}, {"default": 40.0, "tuned": 60.0})])
    assert (found.model, found.kind, found.gain, found.acceptance) == ("m", "draft-simple", 1.5, 0.5)
    assert found.drafted_per_pass == 3.0
    # A pass gave 2.5 tokens at 1.5 times the speed: it cost 1.67 plain ones, 0.22 for each of three guesses.
    assert found.break_even == pytest.approx(2 / 9, abs=1e-4)


def test_other_differences_and_few_rounds_tell_nothing() -> None:
    rates = {"default": 40.0, "tuned": 60.0}
    assert past_guesses([record({"default": {"threads": 1}, "tuned": DRAFT}, rates)]) == ()
    assert past_guesses([record({"default": {"threads": 2}, "tuned": {"threads": 1}}, rates)]) == ()
    assert past_guesses([record({"default": {"threads": 2}, "tuned": DRAFT}, rates, rounds=2)]) == ()
    silent = record({"default": {"threads": 2}, "tuned": DRAFT}, {"default": 40.0})
    assert past_guesses([silent]) == ()


def test_the_newest_counts() -> None:
    knobs: dict[str, Mapping[str, KnobValue]] = {"default": {"speculation": "none", "threads": 2}, "tuned": DRAFT}
    old, new = record(knobs, {"default": 40.0, "tuned": 80.0}), record(knobs, {"default": 40.0, "tuned": 44.0})
    assert [guess.gain for guess in past_guesses([old, new])] == [1.1]


@given(st.floats(0.1, 4), st.floats(0, 1), st.floats(0.01, 16))
def test_at_the_break_even_a_pass_gives_what_it_costs(gain: float, acceptance: float, drafted: float) -> None:
    guess = PastGuess(when="", model="m", kind="x", gain=gain, acceptance=acceptance, drafted_per_pass=drafted)
    found = guess.break_even
    assert found is not None and found >= 0
    cost = (1 + drafted * acceptance) / gain
    if cost > 1:
        assert 1 + drafted * found == pytest.approx(cost)
        assert (found < acceptance) == (gain > 1) or gain == pytest.approx(1)
