"""How long prompts and answers may be, and how many rounds, so that all fits a time budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from velollm.bench.workload import USERS, Workload

FULL_ROUNDS = 5
QUICK_ROUNDS = 3
AGGREGATE_ROUNDS = 3
LONGEST_DECODE_S = 6.0
"""A decode sample ends at its token count or after this time."""

_MOST_AGGREGATE_ROUNDS = 5
_MOST_QUICK_ROUNDS = 5
_LEAST_PROMPT_TOKENS = 16
_LEAST_DECODE_TOKENS = 8
# A slow arm's answer is bounded by time, so a fast one need not be cut to a few tokens for its sake.
_LEAST_DECODE_SHARE = 0.4
_FEWEST_TOKENS = 4  # below three gaps between tokens a decode rate is mostly chance
_FEWEST_QUICK_TOKENS = 3
_FEWEST_AGGREGATE_TOKENS = 2  # there the gaps are not measured
_OVERHEAD_S = 0.15  # connecting, counting tokens and reading memory, for each request; measured on 2 cores: 0.02-0.1
_FOLLOW_UP_TOKENS = 64
_AGAIN_SHARE = 0.1  # of a cached prompt's prefill time
_MARGIN = 0.9  # share of the time that is planned for: rates move while others use the machine

# From the workload's own sizes downwards: share of its tokens, and seconds that decoding may take.
_STEPS = (
    *((1.0, 6.0), (0.75, 6.0), (0.5, 6.0), (0.5, 4.0), (0.35, 4.0), (0.25, 4.0)),
    *((0.18, 4.0), (0.12, 3.0), (0.08, 2.5), (0.05, 2.0), (0.03, 2.0), (0.02, 2.0)),
)
_FIRST_QUICK_STEP = 2
_LAST_QUICK_AGGREGATE_STEP = 5


@dataclass(frozen=True)
class Speed:
    """How fast one arm last was; ``start_s`` what each round pays for starting and warming its server."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    start_s: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What is asked for in each round. The last ``aggregate_rounds`` of ``rounds`` also have several users at once.

    ``step``: how far down the ladder from the workload's own sizes (0) this is. ``levels``: how many users.
    ``asks_again``: each prompt is sent a second time, for the TTFT of a cached one. ``turns``: how many a
    conversation has.
    """

    step: int
    rounds: int
    prompt_tokens: int
    decode_tokens: int
    decode_limit_s: float
    aggregate_rounds: int
    aggregate_prompt_tokens: int
    aggregate_decode_tokens: int
    fewest_tokens: int = _FEWEST_TOKENS
    levels: tuple[int, ...] = (USERS,)
    asks_again: bool = False
    turns: int = 1

    def has_aggregate(self, round_index: int) -> bool:
        """Does this round have the parts with several users?"""
        return self.rounds - self.aggregate_rounds <= round_index < self.rounds


@dataclass(frozen=True)
class Answer:
    """How long one answer may get: ``tokens``, and ``limit_s`` from the first token on should they not come."""

    tokens: int
    limit_s: float


def single_answer(speed: Speed, sizes: Sizes) -> Answer:
    """The answer that one user asks of an arm of that speed."""
    return _answer(speed, sizes.decode_tokens, sizes.decode_limit_s, sizes.fewest_tokens)


def aggregate_answer(speed: Speed, sizes: Sizes) -> Answer:
    """The answer that each of several users at once asks of an arm of that speed."""
    return _answer(speed, sizes.aggregate_decode_tokens, sizes.decode_limit_s, _FEWEST_AGGREGATE_TOKENS)


def _answer(speed: Speed, wanted: int, limit_s: float, fewest: int) -> Answer:
    # An engine notices late that we hung up and would still be busy when the other arm's turn comes, so the
    # answer should end by its count; the limit is for an arm that has become slower since.
    rate = speed.decode_tokens_per_s
    tokens = min(wanted, max(fewest, int(rate * limit_s) + 1))
    return Answer(tokens, min(LONGEST_DECODE_S, max(limit_s * 1.25, (fewest + 0.5) / rate)))


def estimate_request_s(speed: Speed, prompt_tokens: int, answer: Answer) -> float:
    """Time of one answer to one user: the prompt, and the tokens after the first."""
    # The token in the making when the limit is reached is still waited for.
    tokens = min(answer.tokens - 1, answer.limit_s * speed.decode_tokens_per_s + 1)
    return prompt_tokens / speed.prefill_tokens_per_s + tokens / speed.decode_tokens_per_s + _OVERHEAD_S


def estimate_single_s(speed: Speed, sizes: Sizes) -> float:
    """Time of one arm's single-user part in one round, its start included."""
    again_s = _AGAIN_SHARE * sizes.prompt_tokens / speed.prefill_tokens_per_s + _OVERHEAD_S if sizes.asks_again else 0.0
    later_s = (sizes.turns - 1) * estimate_request_s(speed, _FOLLOW_UP_TOKENS, single_answer(speed, sizes))
    first_s = estimate_request_s(speed, sizes.prompt_tokens, single_answer(speed, sizes))
    return speed.start_s + again_s + first_s + later_s


def estimate_aggregate_s(speed: Speed, sizes: Sizes) -> float:
    """Time of one arm's parts with several users in one round, as if they were served one after another."""
    return sum(estimate_crowd_s(speed, sizes, users) for users in sizes.levels)


def estimate_crowd_s(speed: Speed, sizes: Sizes, users: int) -> float:
    """Time of so many users' answers, as if they were served one after another."""
    return users * estimate_request_s(speed, sizes.aggregate_prompt_tokens, aggregate_answer(speed, sizes))


def estimate_rest_s(speeds: Mapping[str, Speed], sizes: Sizes, next_round: int) -> float:
    """Time of all rounds from ``next_round`` on."""
    singles = max(sizes.rounds - next_round, 0)
    aggregates = min(singles, sizes.aggregate_rounds)
    return sum(
        singles * estimate_single_s(speed, sizes) + aggregates * estimate_aggregate_s(speed, sizes)
        for speed in speeds.values()
    )


def fit_sizes(
    workload: Workload,
    speeds: Mapping[str, Speed],
    seconds: float,
    *,
    quick: bool = False,
    context_tokens: int | None = None,
    levels: tuple[int, ...] = (USERS,),
) -> Sizes:
    """The largest sizes whose rounds fit into ``seconds``, then as many more rounds as fit.

    Never fewer than `FULL_ROUNDS` rounds unless ``quick``; where nothing fits, the smallest sizes.
    ``context_tokens``: what one slot holds; prompts and answers stay within it. ``levels``: how many users at once
    there are to be, one part for each; none where it is empty.
    """
    # A quick answer may use all of its time, as a third round is worth more than being early.
    planned_s = seconds if quick else seconds * _MARGIN
    sizes = _first_that_fits(_candidates(workload, quick, context_tokens, levels), speeds, planned_s, 0)
    return _more_rounds(workload, sizes, speeds, planned_s, quick)


def shrink_sizes(
    workload: Workload,
    sizes: Sizes,
    speeds: Mapping[str, Speed],
    seconds: float,
    next_round: int,
    *,
    quick: bool = False,
    context_tokens: int | None = None,
) -> Sizes:
    """The same sizes where what is left of them fits into ``seconds``, else the largest smaller ones that do.

    Rounds of the parts with several users that are already done are counted in.
    """
    if estimate_rest_s(speeds, sizes, next_round) <= seconds:
        return sizes
    first_aggregate = sizes.rounds - sizes.aggregate_rounds
    done = max(next_round - first_aggregate, 0)

    def at_this_point(candidate: Sizes) -> Sizes:
        aggregates = min(max(candidate.aggregate_rounds - done, 0), sizes.aggregate_rounds - done)
        rounds = min(max(candidate.rounds, next_round + aggregates), sizes.rounds)
        return replace(candidate, rounds=rounds, aggregate_rounds=min(aggregates, rounds - next_round) + done)

    smaller = (
        at_this_point(candidate)
        for candidate in _candidates(workload, quick, context_tokens, sizes.levels)
        if candidate.step >= sizes.step
    )
    return _first_that_fits(smaller, speeds, seconds if quick else seconds * _MARGIN, next_round)


def _first_that_fits(
    candidates: Iterator[Sizes], speeds: Mapping[str, Speed], seconds: float, next_round: int
) -> Sizes:
    sizes = next(candidates)
    for candidate in candidates:
        if estimate_rest_s(speeds, sizes, next_round) <= seconds:
            break
        sizes = candidate
    return sizes


def _candidates(
    workload: Workload, quick: bool, context_tokens: int | None, levels: tuple[int, ...]
) -> Iterator[Sizes]:
    """From the most wanted to the least that still measures something."""
    for step, rounds, aggregates in _quick_ladder() if quick else _full_ladder():
        sizes = _sizes_at(workload, step, rounds, aggregates if levels else 0, context_tokens)
        sizes = replace(sizes, levels=levels)
        yield replace(sizes, fewest_tokens=_FEWEST_QUICK_TOKENS) if quick else sizes


def _full_ladder() -> Iterator[tuple[int, int, int]]:
    last = len(_STEPS) - 1
    yield from ((step, FULL_ROUNDS, AGGREGATE_ROUNDS) for step in range(last + 1))
    yield last, FULL_ROUNDS, 0


def _quick_ladder() -> Iterator[tuple[int, int, int]]:
    last = len(_STEPS) - 1
    yield from ((step, QUICK_ROUNDS, 1) for step in range(_FIRST_QUICK_STEP, _LAST_QUICK_AGGREGATE_STEP + 1))
    yield from ((step, QUICK_ROUNDS, 0) for step in range(_LAST_QUICK_AGGREGATE_STEP, last + 1))
    yield from ((last, rounds, 0) for rounds in range(QUICK_ROUNDS - 1, 0, -1))


def _sizes_at(workload: Workload, step: int, rounds: int, aggregate_rounds: int, context_tokens: int | None) -> Sizes:
    share, limit_s = _STEPS[step]
    decode_share = max(share, _LEAST_DECODE_SHARE)
    prompt, decode = _within(workload.prompt_tokens * share, workload.decode_tokens * decode_share, context_tokens)
    prompt_4, decode_4 = _within(
        workload.aggregate_prompt_tokens * share, workload.aggregate_decode_tokens * share, context_tokens
    )
    sizes = Sizes(step, rounds, prompt, decode, limit_s, aggregate_rounds, prompt_4, decode_4)
    return replace(sizes, turns=workload.turns)


def _within(wanted_prompt: float, wanted_decode: float, context_tokens: int | None) -> tuple[int, int]:
    prompt = max(_LEAST_PROMPT_TOKENS, round(wanted_prompt))
    decode = max(_LEAST_DECODE_TOKENS, round(wanted_decode))
    if context_tokens is None:
        return prompt, decode
    # A quarter stays free: a tokenizer may count a little more than asked for, and engines add marks of their own.
    room = max(context_tokens * 3 // 4, 2)
    decode = min(decode, max(room // 2, 1))
    return min(prompt, room - decode), decode


def _more_rounds(workload: Workload, sizes: Sizes, speeds: Mapping[str, Speed], seconds: float, quick: bool) -> Sizes:
    """More rounds make the interval narrower, so time that is left goes there."""
    most = _MOST_QUICK_ROUNDS if quick else workload.rounds
    most_4 = AGGREGATE_ROUNDS if quick else _MOST_AGGREGATE_ROUNDS
    bigger = [replace(sizes, rounds=rounds) for rounds in range(sizes.rounds + 1, most + 1)]
    if sizes.aggregate_rounds:
        rest = range(sizes.aggregate_rounds + 1, most_4 + 1)
        bigger += [replace(sizes, rounds=max(most, sizes.rounds), aggregate_rounds=n) for n in rest]
    for candidate in bigger:
        if estimate_rest_s(speeds, candidate, 0) > seconds:
            break
        sizes = candidate
    return sizes
