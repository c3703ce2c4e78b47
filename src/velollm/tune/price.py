"""What a setting that can change answers costs, in the engine's own probabilities on a fixed text.

At positions all over a text, two servers of one model are asked what comes next. Told are: how far their expectations
lie apart (Kullback-Leibler divergence, in nats), how often both hold the same token for the likeliest, and how well
each of them expects the text (perplexity). Nothing is sampled, so there is no luck in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from velollm.backends.base import NextToken, Progress, RunningServer
from velollm.bench.stats import Ratio
from velollm.config import data_dir
from velollm.errors import VeloError

LIKELIEST = 2000
"""Tokens that are told apart at a position; what is left of the probability is one bin."""
POSITIONS = 256
LEAST_POSITIONS = 16
MADE_NOTE = "the model is made of random weights: it expects nothing, so these figures say nothing of a real one"

_TEXT = "price-text.txt"
# A model knows too little of a text that has only begun.
_FIRST = 16
_DEADLINE_S = 600.0
# Probabilities are told as float32, and so is their sum over the vocabulary: a smaller rest is only rounding.
_LEAST_REST = 1e-6
_RESAMPLES = 4000
_SEED = 20_240_229


@dataclass(frozen=True)
class Price:
    """``other`` against ``reference``, over ``positions`` of a text, the deepest after ``depth_tokens`` tokens.

    ``kl_mean``: nats a token, with its 95% interval; ``kl_p99``: what one token in a hundred exceeds. They are lower
    bounds: tokens that are not told apart, ``binned_share`` of the reference's probability, count as one. 0 is no
    difference at all. ``same_top_share``: positions at which both hold the same token for the likeliest. A
    perplexity is None where the engine does not tell how likely the text's own tokens are.
    """

    positions: int
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_p99: float
    same_top_share: float
    perplexity_reference: float | None
    perplexity_other: float | None
    notes: tuple[str, ...] = ()
    depth_tokens: int = 0
    binned_share: float = 0.0


@dataclass(frozen=True)
class OtherFile:
    """A smaller file of the same model, with the knobs that won, against the model's own file with them.

    ``speed``: ratio of ``metric``, the profile's own figure; above 1 is faster. ``memory_share``: bytes that a server
    needs with it over those with the own one, by arithmetic.
    """

    name: str
    file_type: str | None
    memory_share: float | None
    metric: str
    speed: Ratio
    price: Price


@dataclass(frozen=True)
class Reading:
    """What one server expects after the first ``depth`` tokens of a text, for each depth."""

    tokens: tuple[int, ...]
    found: dict[int, NextToken]


def load_price_text() -> str:
    """The text on which prices are measured: prose and code of our own.

    Raises:
        VeloError: the installation is not whole.
    """
    return (data_dir("configs") / _TEXT).read_text(encoding="utf-8")


def measure_price(
    reference: RunningServer,
    other: RunningServer,
    text: str,
    budget_s: float,
    progress: Progress | None = None,
    *,
    context_tokens: int | None = None,
    made: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Price:
    """The price of the other server's settings against the reference's; each has half of the time.

    Where both do not fit into memory at once, call `read_text` for one after the other, then `price_of`.
    ``context_tokens``: what a prompt may have in both. ``made``: the model has random weights.

    Raises:
        VeloError: an engine tells no probabilities, the two cut the text into other tokens, or the time is too short.
    """
    first = read_text(reference, text, budget_s / 2, progress, context_tokens=context_tokens, clock=clock)
    second = read_text(
        other, text, budget_s / 2, progress, context_tokens=context_tokens, depths=tuple(first.found), clock=clock
    )
    return price_of(first, second, made=made)


def read_text(
    server: RunningServer,
    text: str,
    budget_s: float,
    progress: Progress | None = None,
    *,
    context_tokens: int | None = None,
    depths: Sequence[int] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Reading:
    """Ask one server all over the text, from its beginning on; when the time is up, the rest is left out.

    ``depths``: where to ask, the depths of another reading; None: `POSITIONS` of them, evenly.

    Raises:
        VeloError: the engine tells no probabilities or refuses the text, or the time is too short for any result.
    """
    tokens = server.token_ids(text)
    if tokens is None:
        raise _untold(server)
    if depths is None:
        # The last slot of a context is that of the token which the engine writes itself.
        room = len(tokens) if context_tokens is None else min(len(tokens), context_tokens - 1)
        depths = choose_depths(room, POSITIONS)
    began_s, found = clock(), dict[int, NextToken]()
    for number, depth in enumerate(depths):
        if clock() - began_s > budget_s:
            break
        if progress:
            progress(f"what comes next, {number + 1} of {len(depths)}")
        told = server.next_probabilities(tokens[:depth], LIKELIEST, follower=tokens[depth], deadline_s=_DEADLINE_S)
        if told is None:
            raise _untold(server)
        found[depth] = told
    return Reading(tokens, found)


def choose_depths(tokens: int, wanted: int) -> tuple[int, ...]:
    """At most ``wanted`` lengths of a text of so many tokens, evenly apart, each with a token that follows."""
    last = tokens - 1
    if last < _FIRST:
        return ()
    count = min(wanted, last - _FIRST + 1)
    return tuple(int(depth) for depth in np.linspace(_FIRST, last, count).round())


def price_of(reference: Reading, other: Reading, *, made: bool = False) -> Price:
    """The price from two readings, over the depths that both have.

    Raises:
        VeloError: they are of other tokens, or have too few depths in common.
    """
    if reference.tokens != other.tokens:
        raise VeloError(
            "the two models cut the same text into other tokens", "a price is that of another setting of one model"
        )
    depths = sorted(reference.found.keys() & other.found.keys())
    if len(depths) < LEAST_POSITIONS:
        raise VeloError(
            f"only {len(depths)} positions of the text were read, {LEAST_POSITIONS} are needed for a price",
            "give it more time (--budget), or a larger context",
        )
    pairs = [(reference.found[depth], other.found[depth]) for depth in depths]
    apart = np.array([divergence(one, two) for one, two in pairs])
    low, high = _mean_interval(apart)
    return Price(
        positions=len(depths),
        kl_mean=float(apart.mean()),
        kl_low=low,
        kl_high=high,
        kl_p99=float(np.quantile(apart, 0.99)),
        same_top_share=sum(_likeliest(one) == _likeliest(two) for one, two in pairs) / len(pairs),
        perplexity_reference=perplexity([one.followed_logprob for one, _ in pairs]),
        perplexity_other=perplexity([two.followed_logprob for _, two in pairs]),
        notes=(MADE_NOTE,) if made else (),
        depth_tokens=depths[-1],
        binned_share=sum(binned_share(one, two) for one, two in pairs) / len(pairs),
    )


def divergence(reference: NextToken, other: NextToken) -> float:
    """Kullback-Leibler divergence of the reference from the other, in nats: sum of p ln(p / q), at least 0.

    Over the tokens that both tell, and one bin for all others. Joining outcomes never makes it larger (the log sum
    inequality; Cover and Thomas, "Elements of Information Theory", 2nd ed., theorem 2.7.1), so it is a lower bound
    of the divergence over the whole vocabulary.
    """
    shared = _shared(reference, other)
    p, q = _with_rest(reference, shared), _with_rest(other, shared)
    return max(0.0, float(np.sum(p * np.log(p / q))))


def binned_share(reference: NextToken, other: NextToken) -> float:
    """The reference's probability that the two do not tell apart."""
    return max(0.0, 1.0 - math.fsum(math.exp(reference.logprobs[token]) for token in _shared(reference, other)))


def perplexity(logprobs: Sequence[float | None]) -> float | None:
    """The exponential of the mean of minus the logarithms; None where one is unknown or there is none."""
    known = [value for value in logprobs if value is not None]
    if not known or len(known) < len(logprobs):
        return None
    return math.exp(-math.fsum(known) / len(known))


def _shared(reference: NextToken, other: NextToken) -> list[int]:
    return [token for token in reference.logprobs if token in other.logprobs]


def _with_rest(told: NextToken, shared: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Probabilities of these tokens and of all others together; their sum is 1."""
    known = np.exp([told.logprobs[token] for token in shared])
    whole = np.append(known, max(_LEAST_REST, 1.0 - math.fsum(known)))
    return np.asarray(whole / whole.sum(), dtype=np.float64)


def _likeliest(told: NextToken) -> int | None:
    return next(iter(told.logprobs), None)


def _mean_interval(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """95% interval of the mean: bootstrap over positions, plain percentiles, a fixed seed."""
    draws = np.random.default_rng(_SEED).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _untold(server: RunningServer) -> VeloError:
    return VeloError(
        f"the engine at {server.url} does not tell how likely its tokens are",
        "a price needs llama-server or the embedded engine",
    )
