"""One round of one arm as numbers, and how they follow from streamed answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from velollm.backends.base import Completion

MetricName = Literal["ttft", "answer_ttft", "prefill", "decode", "aggregate_4", "worst_ttft_4"]


@dataclass(frozen=True)
class Metric:
    """A figure of a sample: the field that holds it, and whether more is better."""

    name: MetricName
    field: str
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ttft", "ttft_s", higher_is_better=False),
        Metric("prefill", "prefill_tokens_per_s", higher_is_better=True),
        Metric("decode", "decode_tokens_per_s", higher_is_better=True),
        Metric("aggregate_4", "aggregate_4_tokens_per_s", higher_is_better=True),
        Metric("worst_ttft_4", "worst_ttft_4_s", higher_is_better=False),
    )
}

ANSWER_TTFT = Metric("answer_ttft", "answer_ttft_s", higher_is_better=False)
"""Only of models that think before they answer; it decides nothing."""


@dataclass(frozen=True)
class SingleFigures:
    """One answer to one user.

    ``prompt_tokens`` were computed for it, ``cached_prompt_tokens`` were not (None: the engine does not say).
    ``prefill_basis``: ``engine`` where the prefill time is the engine's own, ``client`` where it is the TTFT.
    ``answer_tokens`` came within ``answer_s`` from the request on; ``finish`` says what ended the answer.
    ``answer_ttft_s``: time to the first token after any thinking, where there was some.
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


@dataclass(frozen=True)
class AggregateFigures:
    """Four users at once: all tokens of all answers over the time until the last one, and the longest TTFT."""

    tokens_per_s: float | None = None
    worst_ttft_s: float | None = None
    tokens: int = 0
    wall_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sample:
    """One round of one arm. None: not measured, or the request failed (then ``error`` says why).

    ``order`` is the arm's place within the round (0 went first). The ``aggregate_*`` fields are None in rounds
    without the part with four users; ``aggregate_error`` is set where one of them failed.
    ``peak_memory_bytes``: the most that the server's processes have held since they started, up to now.
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


def value_of(sample: Sample, metric: Metric) -> float | None:
    """The sample's figure for a metric; None where there is none, or none above zero."""
    value = getattr(sample, metric.field)
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
    )


def decode_rate(completion: Completion) -> float | None:
    """Tokens per second after the first event; None where fewer than two events came."""
    if len(completion.events) < 2:
        return None
    (first_s, first_tokens), (last_s, last_tokens) = completion.events[0], completion.events[-1]
    return _rate(last_tokens - first_tokens, last_s - first_s)


def aggregate_figures(completions: Sequence[Completion]) -> AggregateFigures:
    """The figures of answers whose requests were all sent at the same moment."""
    failed = [c for c in completions if c.finish == "error" or not c.events]
    if failed or not completions:
        why = failed[0].error if failed else None
        return AggregateFigures(error=f"{len(failed)} of {len(completions)} users: {why or 'no token came'}")
    tokens = sum(c.events[-1][1] for c in completions)
    wall_s = max(c.events[-1][0] for c in completions)
    return AggregateFigures(_rate(tokens, wall_s), max(c.events[0][0] for c in completions), tokens, wall_s)


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and seconds and seconds > 0 else None
