from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.base import Completion
from velollm.bench.samples import (
    METRICS,
    Sample,
    crowd_figures,
    decode_rate,
    itl_percentiles,
    single_figures,
    value_of,
)

STEADY = Completion(((0.5, 1), (0.6, 2), (0.7, 3), (0.9, 5)), "length", fresh_prompt_tokens=100, prompt_s=0.4)


def test_decode_leaves_the_first_token_out() -> None:
    assert decode_rate(STEADY) == pytest.approx(4 / 0.4)


def test_decode_leaves_out_all_tokens_of_the_first_event() -> None:
    assert decode_rate(Completion(((1.0, 4), (2.0, 8)), "length")) == pytest.approx(4.0)


def test_decode_needs_two_events_at_different_times() -> None:
    assert decode_rate(Completion(((1.0, 1),), "length")) is None
    assert decode_rate(Completion(((1.0, 1), (1.0, 2)), "length")) is None
    assert decode_rate(Completion((), "length")) is None


def test_prefill_counts_fresh_tokens_over_the_engines_time() -> None:
    figures = single_figures(STEADY, counted_tokens=999)
    assert figures.prefill_tokens_per_s == pytest.approx(250.0)
    assert figures.prefill_basis == "engine"
    assert figures.ttft_s == 0.5
    assert (figures.answer_tokens, figures.answer_s) == (5, 0.9)


def test_prefill_by_the_client_where_the_engine_gives_no_time() -> None:
    figures = single_figures(Completion(((0.5, 1),), "length", fresh_prompt_tokens=100), 999)
    assert figures.prefill_tokens_per_s == pytest.approx(200.0)
    assert figures.prefill_basis == "client"


def test_prefill_by_the_tokenizer_where_the_engine_does_not_count() -> None:
    figures = single_figures(Completion(((0.5, 1),), "length", prompt_s=0.1), 50)
    assert figures.prefill_tokens_per_s == pytest.approx(100.0)
    assert figures.prefill_basis == "client"


def test_prefill_is_unknown_where_nobody_counts_or_all_was_cached() -> None:
    assert single_figures(Completion(((0.5, 1),), "length"), None).prefill_tokens_per_s is None
    cached = single_figures(Completion(((0.5, 1),), "length", fresh_prompt_tokens=0, prompt_s=0.1), 50)
    assert (cached.prefill_tokens_per_s, cached.prefill_basis) == (None, None)


def test_the_first_token_of_the_answer_is_told_only_after_thinking() -> None:
    events = ((0.5, 1), (2.5, 9))
    thought = single_figures(Completion(events, "length", answer_ttft_s=2.5), 10)
    assert (thought.ttft_s, thought.answer_ttft_s) == (0.5, 2.5)
    assert single_figures(Completion(events, "length", answer_ttft_s=0.5), 10).answer_ttft_s is None
    assert single_figures(Completion(events, "length"), 10).answer_ttft_s is None


@pytest.mark.parametrize("completion", [Completion((), "error", error="full"), Completion((), "stop")])
def test_a_failure_has_no_figures(completion: Completion) -> None:
    figures = single_figures(completion, 10)
    assert figures.error == (completion.error or "no token came")
    assert (figures.ttft_s, figures.prefill_tokens_per_s, figures.decode_tokens_per_s) == (None, None, None)


def test_an_answer_that_broke_off_has_no_figures() -> None:
    broken = Completion(((0.5, 1), (0.6, 2)), "error", error="reset")
    assert single_figures(broken, 10).ttft_s is None
    assert crowd_figures([STEADY, broken]).error == "1 of 2 users: reset"


def test_aggregate_is_all_tokens_until_the_last() -> None:
    late = Completion(((2.0, 1), (3.0, 5)), "length")
    figures = crowd_figures([STEADY, late])
    assert (figures.tokens, figures.wall_s, figures.worst_ttft_s) == (10, 3.0, 2.0)
    assert figures.tokens_per_s == pytest.approx(10 / 3)


def test_aggregate_of_nobody_is_an_error() -> None:
    assert crowd_figures([]).error


@given(st.floats(0.1, 1e4), st.integers(2, 500), st.floats(0.01, 100))
def test_decode_rate_of_even_tokens_is_their_rate(rate: float, tokens: int, first_s: float) -> None:
    events = tuple((first_s + place / rate, place + 1) for place in range(tokens))
    assert decode_rate(Completion(events, "length")) == pytest.approx(rate, rel=1e-6)


def test_every_metric_names_a_field_of_a_sample() -> None:
    sample = Sample("default", "chat", 0, 0)
    assert {value_of(sample, metric) for metric in METRICS.values()} == {None}


def test_percentiles_of_the_time_between_tokens() -> None:
    at, events = 1.0, [(1.0, 1)]
    for place in range(100):
        at += 0.5 if place == 99 else 0.1 if place >= 94 else 0.02
        events.append((at, place + 2))
    found = itl_percentiles(Completion(tuple(events), "length"))
    assert found == pytest.approx((0.02, 0.1, 0.1))
    assert itl_percentiles(Completion(((0.1, 1), (0.2, 2)), "length")) == (None, None, None)


def test_tokens_that_come_together_share_the_time() -> None:
    figures = single_figures(Completion(((0.0, 1), (0.4, 5), (0.8, 9)), "length"), 3)
    assert figures.itl_p50_s == pytest.approx(0.1)
    assert figures.itl_p99_s == pytest.approx(0.1)


def test_fairness_is_one_for_equals_and_less_for_others() -> None:
    equal = [Completion(((0.1, 1), (1.0, 10)), "length")] * 4
    assert crowd_figures(equal).fairness == pytest.approx(1.0)
    # Served one after another: rates of 1, 1/2, 1/3 and 1/4.
    queued = [Completion(((n - 0.5, 1), (float(n), 10)), "length") for n in range(1, 5)]
    assert crowd_figures(queued).fairness == pytest.approx((25 / 12) ** 2 / (4 * 205 / 144))
    assert crowd_figures(queued).users == 4
