from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.bench.sizes import (
    AGGREGATE_ROUNDS,
    FULL_ROUNDS,
    LONGEST_DECODE_S,
    Sizes,
    Speed,
    aggregate_answer,
    estimate_rest_s,
    fit_sizes,
    shrink_sizes,
    single_answer,
)
from velollm.bench.workload import load_workload

CHAT = load_workload("chat")
speeds = st.builds(
    Speed,
    st.floats(1, 50_000),
    st.floats(0.2, 2_000),
    st.sampled_from([0.0, 0.5, 4.0]),
)
pairs = st.fixed_dictionaries({"default": speeds, "tuned": speeds})


def smallest(quick: bool) -> Sizes:
    return fit_sizes(CHAT, {"default": Speed(1e-6, 1e-6)}, 1.0, quick=quick)


@given(pairs, st.floats(10, 3600), st.booleans())
def test_sizes_fit_wherever_the_smallest_do(pair: dict[str, Speed], seconds: float, quick: bool) -> None:
    sizes = fit_sizes(CHAT, pair, seconds, quick=quick)
    if estimate_rest_s(pair, smallest(quick), 0) <= seconds * 0.9:
        assert estimate_rest_s(pair, sizes, 0) <= seconds
    assert sizes.aggregate_rounds <= sizes.rounds
    assert quick or FULL_ROUNDS <= sizes.rounds <= CHAT.rounds
    assert sizes.prompt_tokens <= CHAT.prompt_tokens
    assert sizes.decode_tokens <= CHAT.decode_tokens


@given(pairs, st.floats(10, 600), st.floats(10, 600))
def test_more_time_never_gives_less(pair: dict[str, Speed], one: float, other: float) -> None:
    less, more = (fit_sizes(CHAT, pair, seconds) for seconds in sorted((one, other)))
    assert more.step <= less.step
    assert more.prompt_tokens >= less.prompt_tokens


@given(pairs, st.floats(10, 600), st.integers(32, 8192))
def test_prompt_and_answer_stay_within_a_slot(pair: dict[str, Speed], seconds: float, context: int) -> None:
    sizes = fit_sizes(CHAT, pair, seconds, context_tokens=context)
    assert sizes.prompt_tokens + sizes.decode_tokens <= context
    assert sizes.aggregate_prompt_tokens + sizes.aggregate_decode_tokens <= context


@given(pairs, st.floats(60, 600), st.floats(0, 600), st.integers(1, 7))
def test_shrinking_keeps_what_is_done(pair: dict[str, Speed], seconds: float, left: float, done: int) -> None:
    sizes = fit_sizes(CHAT, pair, seconds)
    done = min(done, sizes.rounds)
    smaller = shrink_sizes(CHAT, sizes, pair, left, done)
    assert done <= smaller.rounds <= sizes.rounds
    assert smaller.step >= sizes.step
    assert smaller.prompt_tokens <= sizes.prompt_tokens
    already = [sizes.has_aggregate(place) for place in range(done)]
    planned = [smaller.has_aggregate(place) for place in range(done, smaller.rounds)]
    assert sum(already) + sum(planned) <= sizes.aggregate_rounds
    assert estimate_rest_s(pair, smaller, done) <= estimate_rest_s(pair, sizes, done) + 1e-9


@given(speeds, st.floats(10, 600))
def test_answers_are_bounded_by_the_longest_decode(speed: Speed, seconds: float) -> None:
    sizes = fit_sizes(CHAT, {"default": speed}, seconds)
    for answer in (single_answer(speed, sizes), aggregate_answer(speed, sizes)):
        assert 0 < answer.limit_s <= LONGEST_DECODE_S
        assert answer.tokens >= 2


def test_a_fast_machine_gets_the_workload_as_it_is_and_all_rounds() -> None:
    sizes = fit_sizes(CHAT, {"default": Speed(5000, 150), "tuned": Speed(5000, 150)}, 160)
    assert (sizes.step, sizes.prompt_tokens, sizes.decode_tokens) == (0, CHAT.prompt_tokens, CHAT.decode_tokens)
    assert sizes.rounds == CHAT.rounds
    assert sizes.aggregate_rounds > AGGREGATE_ROUNDS


def test_aggregate_rounds_are_the_last_ones() -> None:
    sizes = fit_sizes(CHAT, {"default": Speed(100, 45), "tuned": Speed(100, 45)}, 160)
    flags = [sizes.has_aggregate(place) for place in range(sizes.rounds)]
    assert sum(flags) == sizes.aggregate_rounds
    assert flags == sorted(flags)
