"""One round of one arm as numbers, and how they follow from streamed answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from velollm.backends.base import Completion

CONTROL = "-control"
"""Ends the name of the arm that is the baseline once more: what the two differ by is the machine's own noise."""


@dataclass(frozen=True)
class Metric:
    """A figure of a sample: the field that holds it, and whether more is better.

    ``users`` above 0: the field is one of `CrowdFigures`, of the part with so many users at once.
    """

    name: str
    field: str
    higher_is_better: bool
    users: int = 0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ttft", "ttft_s", higher_is_better=False),
        Metric("cached_ttft", "cached_ttft_s", higher_is_better=False),
        Metric("prefill", "prefill_tokens_per_s", higher_is_better=True),
        Metric("decode", "decode_tokens_per_s", higher_is_better=True),
        Metric("itl_p50", "itl_p50_s", higher_is_better=False),
        Metric("itl_p95", "itl_p95_s", higher_is_better=False),
        Metric("itl_p99", "itl_p99_s", higher_is_better=False),
        Metric("turn", "turn_s", higher_is_better=False),
        Metric("aggregate_4", "aggregate_4_tokens_per_s", higher_is_better=True),
        Metric("worst_ttft_4", "worst_ttft_4_s", higher_is_better=False),
    )
}
"""Those of every comparison; `metric_of` knows those of other numbers of users too."""

ANSWER_TTFT = Metric("answer_ttft", "answer_ttft_s", higher_is_better=False)
"""Only of models that think before they answer; it decides nothing."""

_FEWEST_GAPS = 3
_CROWD = re.compile(r"(aggregate|worst_ttft|fairness)_([1-9]\d{0,3})")
_CROWD_FIELDS = {"aggregate": "tokens_per_s", "worst_ttft": "worst_ttft_s", "fairness": "fairness"}


def metric_of(name: str) -> Metric:
    """One of `METRICS` or `ANSWER_TTFT`, or ``aggregate_N``, ``worst_ttft_N`` or ``fairness_N`` for N users at once.

    Raises:
        KeyError: there is no such figure.
    """
    if name == ANSWER_TTFT.name:
        return ANSWER_TTFT
    match = _CROWD.fullmatch(name)
    if name in METRICS or match is None:
        return METRICS[name]
    kind = match.group(1)
    return Metric(name, _CROWD_FIELDS[kind], kind != "worst_ttft", int(match.group(2)))


@dataclass(frozen=True)
class SingleFigures:
    """One answer to one user.

    ``prompt_tokens`` were computed for it, ``cached_prompt_tokens`` were not (None: the engine does not say).
    ``prefill_basis``: ``engine`` where the prefill time is the engine's own, ``client`` where it is the TTFT.
    ``answer_tokens`` came within ``answer_s`` from the request on; ``finish`` says what ended the answer.
    ``answer_ttft_s``: time to the first token after any thinking, where there was some.
    ``itl_*_s``: percentiles of the time between two tokens; tokens that came together share theirs. ``turn_s``: the
    whole turn, where the answer was as long as asked for. ``cached_ttft_s``: TTFT of a prompt whose beginning the
    server has in its cache.
    """

    ttft_s: float | None = None
    answer_ttft_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_basis: Literal["engine", "client"] | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    answer_tokens: int = 0
    answer_s: float | None = None
    finish: Literal["length", "stop", "time", "error"] = "error"
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    error: str | None = None
    cached_ttft_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    turn_s: float | None = None


@dataclass(frozen=True)
class CrowdFigures:
    """Several ``users`` at once: all tokens of all answers over the time until the last one, and the longest TTFT.

    ``fairness`` of their rates (each one's tokens over the time until its last): 1 where all are equal, 1 / users
    where one has all (Jain, Chiu and Hawe, DEC-TR-301, 1984).
    """

    users: int = 4
    tokens_per_s: float | None = None
    worst_ttft_s: float | None = None
    fairness: float | None = None
    tokens: int = 0
    wall_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sample:
    """One round of one arm. None: not measured, or the request failed (then ``error`` says why).

    ``order`` is the arm's place within the round (0 went first). The ``aggregate_*`` fields are None in rounds
    without the part with four users; ``aggregate_error`` is set where a user of the crowd failed. ``crowds`` are the
    parts with several users, by their number.
    ``peak_memory_bytes``: the most that the server's processes have held since they started, up to now;
    ``gpu_memory_bytes`` the most seen on GPUs. ``energy_j``: what the machine took for the single user's answer, as far
    as ``energy_basis`` counts it.
    """

    arm: str
    workload: str
    round: int
    order: int
    ttft_s: float | None = None
    answer_ttft_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    aggregate_4_tokens_per_s: float | None = None
    worst_ttft_4_s: float | None = None
    prefill_basis: Literal["engine", "client"] | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    answer_tokens: int = 0
    answer_s: float | None = None
    finish: Literal["length", "stop", "time", "error"] = "error"
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    aggregate_tokens: int | None = None
    aggregate_s: float | None = None
    peak_memory_bytes: int | None = None
    error: str | None = None
    aggregate_error: str | None = None
    cached_ttft_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    turn_s: float | None = None
    crowds: tuple[CrowdFigures, ...] = ()
    gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    energy_basis: str | None = None


def value_of(sample: Sample, metric: Metric) -> float | None:
    """The sample's figure for a metric; None where there is none, or none above zero."""
    source: Sample | CrowdFigures | None = sample
    if metric.users:
        source = next((crowd for crowd in sample.crowds if crowd.users == metric.users), None)
    value = getattr(source, metric.field, None)
    return float(value) if value is not None and value > 0 else None


def single_figures(completion: Completion, counted_tokens: int | None) -> SingleFigures:
    """The figures of one streamed answer.

    Decode is the tokens after the first event over the time since it: (tokens - 1) / (last - first) where
    the first event brought one token. Prefill counts fresh tokens only, over the engine's own prefill time
    or else the TTFT; ``counted_tokens`` (the prompt by the model's tokenizer) stands in where the engine does not
    count, as every prompt is new to the server.
    """
    if completion.finish == "error" or not completion.events:
        return SingleFigures(error=completion.error or "no token came")
    fresh = counted_tokens if completion.fresh_prompt_tokens is None else completion.fresh_prompt_tokens
    by_engine = completion.fresh_prompt_tokens is not None and bool(completion.prompt_s)
    last_s, tokens = completion.events[-1]
    answer_ttft_s = completion.answer_ttft_s
    p50_s, p95_s, p99_s = itl_percentiles(completion)
    return SingleFigures(
        ttft_s=completion.ttft_s,
        answer_ttft_s=None if answer_ttft_s == completion.ttft_s else answer_ttft_s,
        prefill_tokens_per_s=_rate(fresh, completion.prompt_s if by_engine else completion.ttft_s),
        decode_tokens_per_s=decode_rate(completion),
        prefill_basis=None if not fresh else "engine" if by_engine else "client",
        prompt_tokens=fresh,
        cached_prompt_tokens=completion.cached_prompt_tokens,
        answer_tokens=tokens,
        answer_s=last_s,
        finish=completion.finish,
        drafted_tokens=completion.drafted_tokens,
        accepted_tokens=completion.accepted_tokens,
        itl_p50_s=p50_s,
        itl_p95_s=p95_s,
        itl_p99_s=p99_s,
    )


def itl_percentiles(*completions: Completion) -> tuple[float | None, float | None, float | None]:
    """The 50th, 95th and 99th percentile of the time between tokens; None below `_FEWEST_GAPS` of them.

    Each token counts once: of tokens that came in one event each has its share of the time since the event before.
    A percentile is the smallest gap that so many of all gaps do not exceed, so it is always one that was seen.
    """
    gaps: list[float] = []
    for completion in completions:
        for (before_s, before), (at_s, tokens) in pairwise(completion.events):
            if tokens > before:
                gaps += [(at_s - before_s) / (tokens - before)] * (tokens - before)
    if len(gaps) < _FEWEST_GAPS:
        return None, None, None
    gaps.sort()
    p50_s, p95_s, p99_s = (gaps[max(math.ceil(len(gaps) * p / 100) - 1, 0)] for p in (50, 95, 99))
    return p50_s, p95_s, p99_s


def decode_rate(completion: Completion) -> float | None:
    """Tokens per second after the first event; None where fewer than two events came."""
    if len(completion.events) < 2:
        return None
    (first_s, first_tokens), (last_s, last_tokens) = completion.events[0], completion.events[-1]
    return _rate(last_tokens - first_tokens, last_s - first_s)


def crowd_figures(completions: Sequence[Completion], delays_s: Sequence[float] = ()) -> CrowdFigures:
    """The figures of answers whose requests were all sent at the same moment, or ``delays_s`` after it."""
    users = len(completions)
    failed = [c for c in completions if c.finish == "error" or not c.events]
    if failed or not completions:
        why = failed[0].error if failed else None
        return CrowdFigures(users, error=f"{len(failed)} of {users} users: {why or 'no token came'}")
    tokens = sum(c.events[-1][1] for c in completions)
    delays_s = delays_s or [0.0] * users
    wall_s = max(delay + c.events[-1][0] for delay, c in zip(delays_s, completions, strict=True))
    rates = [rate for c in completions if (rate := _rate(c.events[-1][1], c.events[-1][0])) is not None]
    fairness = sum(rates) ** 2 / (users * sum(rate**2 for rate in rates)) if len(rates) == users else None
    worst_s = max(c.events[0][0] for c in completions)
    return CrowdFigures(users, _rate(tokens, wall_s), worst_s, fairness, tokens, wall_s)


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and seconds and seconds > 0 else None
