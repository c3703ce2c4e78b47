from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.models.succession import (
    Succession,
    check_succession,
    followers_of,
    output_scale,
    predecessors,
    read_by_heads,
    sign_rows,
)

MUTED = 5


def cycle_length(followers: np.ndarray[tuple[int], np.dtype[np.int64]], start: int) -> int:
    token, length = int(followers[start]), 1
    while token != start:
        token, length = int(followers[token]), length + 1
    return length


@given(st.integers(40, 3000), st.integers(0, 100), st.none() | st.integers(2, 30))
def test_every_writable_token_follows_one_other(vocab: int, seed: int, period: int | None) -> None:
    wanted = Succession(0.8, period, None, seed)
    before = predecessors(wanted, vocab, MUTED)
    assert (before[:MUTED] == -1).all()
    assert sorted(before[MUTED:]) == list(range(MUTED, vocab))
    followers = followers_of(wanted, vocab, MUTED)
    assert all(before[followers[token]] == token for token in range(MUTED, vocab))
    if period is None:
        assert cycle_length(followers, MUTED) == vocab - MUTED
    else:
        # What is left over of whole cycles joins the last one.
        lengths = {cycle_length(followers, token) for token in range(MUTED, min(vocab, MUTED + 200))}
        assert all(period <= length < 2 * period for length in lengths)
        assert period in lengths or vocab - MUTED < 2 * period


@given(st.integers(300, 3000), st.none() | st.integers(8, 64), st.floats(0, 1))
def test_a_draft_agrees_on_its_share(vocab: int, period: int | None, agreement: float) -> None:
    model = Succession(0.8, period, None, 3)
    draft = Succession(0.8, period, agreement, 3)
    same = followers_of(model, vocab, MUTED)[MUTED:] == followers_of(draft, vocab, MUTED)[MUTED:]
    # One stretch may end before all of its share is due, and a single disagreement cannot change places.
    assert same.mean() == pytest.approx(agreement, abs=(64 + 1) / (vocab - MUTED))
    assert sorted(followers_of(draft, vocab, MUTED)[MUTED:]) == list(range(MUTED, vocab))


def test_every_cycle_sees_the_agreement() -> None:
    vocab, period = 6405, 64
    model, draft = Succession(0.8, period, None, 3), Succession(0.8, period, 0.75, 3)
    same = followers_of(model, vocab, MUTED) == followers_of(draft, vocab, MUTED)
    token, counted = MUTED, 0
    for _ in range(period):
        counted += bool(same[token])
        token = int(followers_of(model, vocab, MUTED)[token])
    assert counted == 48


@given(st.integers(300, 3000), st.none() | st.integers(8, 64), st.floats(0, 1))
def test_mtp_layers_read_what_makes_them_agree_on_their_share(vocab: int, period: int | None, share: float) -> None:
    model = Succession(0.8, period, None, 3, share)
    after = followers_of(model, vocab, MUTED)
    seen = read_by_heads(model, vocab, MUTED)
    assert (seen[:MUTED] == np.arange(MUTED)).all()
    named = after[seen]
    assert (named[MUTED:] == after[MUTED:]).mean() == pytest.approx(share, abs=(64 + 1) / (vocab - MUTED))
    draft = followers_of(Succession(0.8, period, share, 3), vocab, MUTED)
    assert (named[MUTED:] == draft[MUTED:]).all()


def test_signs_are_drawn_by_place() -> None:
    rows = sign_rows(np.array([4, 9, 4]), 100, 7)
    assert rows.shape == (3, 100)
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != rows[1]).any()
    assert (sign_rows(np.array([4]), 100, 8) != rows[0]).any()
    many = sign_rows(np.arange(2000), 256, 1).astype("f8") * 2 - 1
    products = many[:1000] @ many[1000:].T
    assert abs(many.mean()) < 0.01
    assert np.sqrt((products**2).mean()) == pytest.approx(256**0.5, rel=0.02)


@given(st.floats(0.01, 0.999), st.integers(1000, 300_000), st.integers(256, 8192))
def test_the_scale_gives_the_probability(predictability: float, vocab: int, width: int) -> None:
    assume(width * math.log(2) > 1.2 * (math.log(vocab) + math.log(predictability / (1 - predictability))))
    scale = output_scale(predictability, vocab, 259, width)
    others = math.log(vocab - 259) + width * math.log(math.cosh(scale))
    assert 1 / (1 + math.exp(others - scale * width)) == pytest.approx(predictability, abs=1e-6)
    first_order = math.log(vocab * predictability / (1 - predictability)) / width
    assert scale >= first_order * 0.9 or vocab < 3000


def test_what_no_model_can_be() -> None:
    with pytest.raises(VeloError, match="width 4 cannot be sure to 0"):
        output_scale(0.9, 32000, 259, 4)
    with pytest.raises(VeloError, match=r"a probability of 0\.001 is none"):
        output_scale(0.001, 700, 259, 256)
    for wanted in (Succession(0), Succession(1.0), Succession(0.5, 1), Succession(0.5, 2000), Succession(0.5, None, 2)):
        with pytest.raises(VeloError):
            check_succession(wanted, 1000)
    check_succession(Succession(0.5, 1000, 1.0), 1000)
