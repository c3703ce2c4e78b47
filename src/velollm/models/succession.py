"""Text that is known beforehand: which token follows which, how surely, and how a draft model agrees.

A token's embedding is a row of random signs, and the output matrix has the same row, scaled, at the place of the
token that shall follow. Where the layers hardly move the residual, the logit of the follower is scale × width and
those of all others are near 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from velollm.errors import VeloError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int64]

# Streams of random numbers of one seed.
_ORDER, _DISAGREEMENT, _SIGNS = 101, 102, 103
# All layers together move the residual by about this share of an embedding, so that cosines stay within 0.1%.
LAYERS_SHARE = 0.02


@dataclass(frozen=True)
class Succession:
    """A chosen succession of the tokens from ``muted`` on.

    ``predictability``: probability of the follower at temperature 1, with no token cut off. ``period``: tokens after
    which the text repeats; None where it does not before every token was written. ``agreement``: share of tokens
    after which this (draft) model names the same follower as the one it drafts for, which has the same seed.
    ``heads_agreement``: the same of the model's own MTP layers, which by themselves always do.
    """

    predictability: float
    period: int | None = None
    agreement: float | None = None
    seed: int = 1
    # Not told in marks: what it changes is, and files that were made before it came are still whole.
    heads_agreement: float | None = field(default=None, repr=False)


def check_succession(wanted: Succession, writable: int) -> None:
    """Raises `VeloError` for numbers that no model can be made with."""
    if not 0 < wanted.predictability < 1:
        raise VeloError(f"a predictability of {wanted.predictability:g} cannot be had", "give 0 to 1, such as 0.8")
    for agreement in (wanted.agreement, wanted.heads_agreement):
        if agreement is not None and not 0 <= agreement <= 1:
            raise VeloError(f"an agreement of {agreement:g} cannot be had", "give 0 to 1, such as 0.8")
    if wanted.period is not None and not 2 <= wanted.period <= writable:
        raise VeloError(f"text cannot repeat every {wanted.period} tokens", f"give a period of 2 to {writable}")


@lru_cache(maxsize=2)
def predecessors(wanted: Succession, vocab: int, muted: int) -> Tokens:
    """For each token the one that it follows; −1 for muted tokens, which follow none."""
    import numpy as np

    order = _order(wanted.seed, vocab, muted)
    followers = _cycles(order, wanted.period)
    if wanted.agreement is not None:
        followers = _disagreeing(followers, wanted)
    before = np.full(vocab, -1, dtype=np.int64)
    before[followers] = order
    return before


def followers_of(wanted: Succession, vocab: int, muted: int) -> Tokens:
    """For each token the one that follows it; −1 after muted tokens."""
    import numpy as np

    before = predecessors(wanted, vocab, muted)
    after = np.full(vocab, -1, dtype=np.int64)
    after[before[muted:]] = np.arange(muted, vocab)
    return after


def read_by_heads(wanted: Succession, vocab: int, muted: int) -> Tokens:
    """For each token the one whose embedding MTP layers see in its place, so that they agree on their share."""
    import numpy as np

    named = followers_of(replace(wanted, agreement=wanted.heads_agreement), vocab, muted)
    before = predecessors(wanted, vocab, muted)
    return np.where(named < 0, np.arange(vocab), before[named])


def _order(seed: int, vocab: int, muted: int) -> Tokens:
    """The writable tokens, shuffled."""
    import numpy as np

    return np.random.Generator(np.random.PCG64([seed, _ORDER])).permutation(np.arange(muted, vocab, dtype=np.int64))


def _cycles(order: Tokens, period: int | None) -> Tokens:
    """The follower of each token of ``order``: the next one, and at the end of a cycle its first.

    What is left over of whole cycles joins the last one.
    """
    import numpy as np

    length = period or len(order)
    followers = np.roll(order, -1)
    starts = np.arange(len(order) // length) * length
    ends = np.append(starts[1:], len(order)) - 1
    followers[ends] = order[starts]
    return followers


def _disagreeing(followers: Tokens, wanted: Succession) -> Tokens:
    """The followers that a draft names: among the tokens of disagreement they change places.

    Each stretch of a period (or of 64 tokens) has its share of them, so that every text sees the wanted agreement.
    """
    import numpy as np

    count = len(followers)
    stretch = min(wanted.period or 64, count)
    keys = np.random.Generator(np.random.PCG64([wanted.seed, _DISAGREEMENT])).random(count)
    stretches = np.arange(count) // stretch
    by_key = np.lexsort((keys, stretches))
    rank = np.empty(count, dtype=np.int64)
    rank[by_key] = np.arange(count) - stretches[by_key] * stretch
    share = 1 - (wanted.agreement or 0.0)
    due = np.floor((stretches + 1) * stretch * share + 0.5) - np.floor(stretches * stretch * share + 0.5)
    places = np.flatnonzero(rank < due)
    changed = followers.copy()
    if len(places) > 1:
        changed[places] = np.roll(followers[places], 1)
    return changed


def sign_rows(tokens: Tokens, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """The random signs (0 or 1) of the embeddings of these tokens, drawn by place, without a table of them.

    Each 64 signs are one output of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators") at the index of their place.
    """
    import numpy as np

    words = -(-width // 64)
    place = tokens.astype(np.uint64)[:, None] * np.uint64(words) + np.arange(words, dtype=np.uint64)
    start = np.random.SeedSequence([seed, _SIGNS]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = start + (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.unpackbits(mixed.astype("<u8").view(np.uint8), axis=1)[:, :width]


def output_scale(predictability: float, vocab: int, muted: int, width: int) -> float:
    """Scale of the output rows that gives the follower that probability.

    The follower's logit is scale × width; muted tokens are suppressed by the engine; every other token has scale × a
    sum of ``width`` random signs, whose exponential has the mean cosh(scale)^width. To first order this is
    ln(V·P/(1−P))/width.

    Raises:
        VeloError: a model so narrow cannot be so sure among so many tokens, or any token is as sure by chance.
    """
    odds = math.log(predictability / (1 - predictability))
    others = math.log(vocab - muted)

    def excess(scale: float) -> float:
        return scale * width - others - width * math.log(math.cosh(scale)) - odds

    low, high = 0.0, 2.0
    if excess(low) >= 0:
        raise VeloError(
            f"among {vocab} tokens a follower with a probability of {predictability:g} is none",
            "give a larger predictability, such as 0.8",
        )
    if excess(high) < 0:
        raise VeloError(
            f"a model of width {width} cannot be sure to {predictability:g} among {vocab} tokens",
            "give a smaller predictability or a wider shape",
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high
