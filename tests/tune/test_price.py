from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.backends.base import Completion, ModelRef, NextToken, RunningServer
from velollm.backends.embedded import EmbeddedBackend
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Knobs
from velollm.report.price import render_price
from velollm.tune.price import (
    LEAST_POSITIONS,
    LIKELIEST,
    MADE_NOTE,
    Price,
    Reading,
    binned_share,
    choose_depths,
    divergence,
    load_price_text,
    measure_price,
    perplexity,
    price_of,
    read_text,
)


def told(*shares: float, keep: int | None = None, followed: float | None = 0.5) -> NextToken:
    """Token N has the Nth share of the probability; only the ``keep`` likeliest are told."""
    whole = sum(shares)
    rows = sorted(((share / whole, token) for token, share in enumerate(shares)), reverse=True)[:keep]
    logs = {token: math.log(share) for share, token in rows}
    return NextToken(logs, None if followed is None else math.log(followed))


shares = st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=40)
kept = st.integers(1, 40)


@given(shares, shares, kept, kept)
def test_a_divergence_is_never_below_zero(one: list[float], two: list[float], first: int, second: int) -> None:
    p, q = told(*one, keep=first), told(*two, keep=second)
    assert divergence(p, q) >= 0
    assert math.isfinite(divergence(p, q))
    assert 0 <= binned_share(p, q) <= 1


@given(shares, kept)
def test_nothing_diverges_from_itself(one: list[float], keep: int) -> None:
    assert divergence(told(*one, keep=keep), told(*one, keep=keep)) == 0


@given(st.lists(st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)), min_size=3, max_size=30), kept)
def test_what_is_told_apart_is_a_lower_bound(pairs: list[tuple[float, float]], keep: int) -> None:
    one, two = zip(*pairs, strict=True)
    p, q = told(*one), told(*two)
    exact = math.fsum(math.exp(p.logprobs[t]) * (p.logprobs[t] - q.logprobs[t]) for t in p.logprobs)
    # The rest of a whole vocabulary is rounding only, and is held at a millionth.
    assert divergence(p, q) == pytest.approx(exact, abs=1e-5)
    assert divergence(told(*one, keep=keep), told(*two, keep=keep)) <= exact + 1e-5


def test_a_divergence_worked_out_by_hand() -> None:
    p, q = told(0.5, 0.25, 0.25), told(0.25, 0.5, 0.25)
    assert divergence(p, q) == pytest.approx(0.25 * math.log(2), abs=1e-5)
    skewed = told(0.9, 0.05, 0.05), told(0.4, 0.3, 0.3)
    assert divergence(*skewed) != pytest.approx(divergence(*reversed(skewed)), rel=0.1)


def test_tokens_that_only_one_tells_go_to_the_rest() -> None:
    p, q = told(0.6, 0.3, 0.1, keep=2), told(0.6, 0.1, 0.3, keep=2)
    # Token 1 is told by the first only, token 2 by the second only: 0 and the rest are left.
    assert divergence(p, q) == pytest.approx(0, abs=1e-9)
    assert binned_share(p, q) == pytest.approx(0.4)


def test_perplexity() -> None:
    assert perplexity([math.log(0.25)] * 3) == pytest.approx(4)
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)
    assert perplexity([math.log(0.5), None]) is None
    assert perplexity([]) is None


@given(st.integers(0, 5000), st.integers(1, 300))
def test_depths_are_even_and_have_a_token_that_follows(tokens: int, wanted: int) -> None:
    found = choose_depths(tokens, wanted)
    assert len(set(found)) == len(found) <= wanted
    assert list(found) == sorted(found)
    if tokens > 17:
        assert found[0] == 16
        assert found[-1] == tokens - 1 or wanted == 1
    else:
        assert not found or found == (16,)


def reading(*of: NextToken, depths: Sequence[int] | None = None) -> Reading:
    return Reading((1, 2, 3), dict(zip(depths or range(16, 16 + len(of)), of, strict=True)))


def test_a_price_from_two_readings() -> None:
    same, off = told(0.6, 0.4), told(0.4, 0.6, followed=0.25)
    reference, other = reading(*[same] * 40), reading(*[same] * 30, *[off] * 10)
    price = price_of(reference, other)
    each = divergence(same, off)
    assert (price.positions, price.same_top_share, price.depth_tokens) == (40, 0.75, 55)
    assert price.kl_mean == pytest.approx(each / 4)
    assert price.kl_low < price.kl_mean < price.kl_high
    assert price.kl_p99 == pytest.approx(each)
    assert price.perplexity_reference == pytest.approx(2)
    assert price.perplexity_other == pytest.approx(2 ** (30 / 40) * 4 ** (10 / 40))
    assert price.notes == ()
    assert price_of(reference, other, made=True).notes == (MADE_NOTE,)


def test_equal_readings_cost_exactly_nothing() -> None:
    one = reading(*[told(0.5, 0.3, 0.2, keep=2)] * 20)
    price = price_of(one, one)
    assert (price.kl_mean, price.kl_low, price.kl_high, price.kl_p99, price.same_top_share) == (0, 0, 0, 0, 1)


def test_only_depths_that_both_have_count() -> None:
    one = told(0.5, 0.5)
    price = price_of(reading(*[one] * 20), reading(*[one] * 30, depths=range(14, 44)))
    assert (price.positions, price.depth_tokens) == (20, 35)


def test_what_is_no_price() -> None:
    one = told(0.5, 0.5)
    with pytest.raises(VeloError, match="other tokens"):
        price_of(reading(*[one] * 20), Reading((1, 2), {}))
    few = reading(*[one] * (LEAST_POSITIONS - 1))
    with pytest.raises(VeloError, match="only 15 positions"):
        price_of(few, few)


class Told(RunningServer):
    """A server with a vocabulary of three tokens, which takes a second for each question."""

    def __init__(self, *, tells: bool = True) -> None:
        self.url = "http://127.0.0.1:1"
        self.tells = tells
        self.asked: list[tuple[int, int]] = []
        self.now_s = 0.0

    def token_ids(self, text: str) -> tuple[int, ...] | None:
        return tuple(ord(letter) % 3 for letter in text)

    def next_probabilities(
        self, tokens: Sequence[int], count: int, *, follower: int, deadline_s: float
    ) -> NextToken | None:
        self.asked.append((len(tokens), follower))
        self.now_s += 1
        return told(0.5, 0.3, 0.2) if self.tells else None

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int,
        seed: int,
        deadline_s: float,
        decode_limit_s: float | None = None,
        ignore_eos: bool = True,
        schema: Mapping[str, object] | None = None,
    ) -> Completion:
        raise NotImplementedError

    def count_tokens(self, text: str) -> int:
        raise NotImplementedError

    def wait(self) -> int | None:
        return None

    def pids(self) -> tuple[int, ...]:
        return ()


TEXT = "some words that follow each other " * 20


def test_a_text_is_read_from_its_beginning_with_the_token_that_follows() -> None:
    server, lines = Told(), list[str]()
    tokens = server.token_ids(TEXT) or ()
    found = read_text(server, TEXT, 1e9, lines.append, context_tokens=100)
    assert [depth for depth, _ in server.asked] == list(found.found) == list(range(16, 99))
    assert all(follower == tokens[depth] for depth, follower in server.asked)
    assert lines[-1] == "what comes next, 83 of 83"


def test_both_servers_are_asked_the_same_and_time_ends_it() -> None:
    one, two = Told(), Told()
    price = measure_price(one, two, TEXT, 60.0, clock=lambda: one.now_s + two.now_s)
    assert len(one.asked) == 31
    assert two.asked == one.asked
    assert (price.positions, price.kl_mean) == (31, 0)


def test_an_engine_that_tells_nothing_is_named() -> None:
    with pytest.raises(VeloError, match="does not tell how likely"):
        measure_price(Told(), Told(tells=False), TEXT, 60.0)


def test_the_text_is_long_enough_and_our_own() -> None:
    text = load_price_text()
    # About four letters a token in a large vocabulary.
    assert len(text) > 4 * 1500
    assert "def parse_bytes" in text


def test_a_price_on_the_terminal() -> None:
    price = Price(256, 0.00123, 0.001, 0.0015, 0.02, 0.984, 12.0, 12.06, (MADE_NOTE,), 1500, 0.02)
    lines = render_price("kv_type_k=q8_0", price)
    assert lines[0] == "price of kv_type_k=q8_0:"
    assert "0.0012 nats a token (95% 0.001-0.0015), one in a hundred above 0.02" in lines[1]
    assert "98.4% of 256 positions" in lines[2]
    assert "12.000 -> 12.060 (+0.50%)" in lines[3]
    assert "1,500 tokens deep" in lines[4]
    assert "a lower bound: 2.0%" in lines[5]
    assert MADE_NOTE in lines[6]
    nothing = Price(16, 0.0, 0.0, 0.0, 0.0, 1.0, None, None)
    assert "0 nats a token (95% 0-0)" in render_price("x", nothing)[1]
    assert "perplexity  unknown" in render_price("x", nothing)[3]


@pytest.mark.flight
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine is not installed")
def test_a_real_model_pays_more_for_fewer_bits(tmp_path: Path) -> None:
    model = ModelRef("tiny-python", shared_dir("models") / "tiny-python-5m-f16.gguf")
    backend, facts, text = EmbeddedBackend(), Facts(), load_price_text()

    def read(kind: str) -> Reading:
        knobs: Knobs = {"context_tokens": 512, "kv_type_k": kind, "kv_type_v": kind, "threads": 1}
        with backend.trial(model, knobs, facts, log=tmp_path / f"{kind}.log") as server:
            return read_text(server, text, 60.0, depths=choose_depths(512, 60))

    reference = read("f16")
    assert len(reference.found) == 60
    assert len(next(iter(reference.found.values())).logprobs) == LIKELIEST
    again, eight, four = (price_of(reference, read(kind)) for kind in ("f16", "q8_0", "q4_0"))
    assert (again.kl_mean, again.kl_p99, again.same_top_share) == (0, 0, 1)
    assert again.perplexity_other == again.perplexity_reference
    assert 0 < eight.kl_high < four.kl_low / 10
    assert eight.same_top_share > four.same_top_share
    # Better than a guess among its 2,048 tokens.
    assert 1 < (again.perplexity_reference or 0) < 2048
