from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backends import wire
from velollm.backends.base import NextToken
from velollm.backends.llamahttp import LlamaHttp, parse_metrics, parse_next_token, parse_stream
from velollm.errors import VeloError


def chunk(count: int, text: str = "x", **more: object) -> str:
    timings = {"cache_n": 1, "prompt_n": 20, "prompt_ms": 50.0, "predicted_n": count, "predicted_ms": 9.0}
    return "data: " + json.dumps({"content": text, "stop": False, "timings": timings, **more})


LAST = "data: " + json.dumps(
    {
        "content": "",
        "stop": True,
        "stop_type": "limit",
        "tokens_predicted": 3,
        "timings": {
            "cache_n": 1,
            "prompt_n": 20,
            "prompt_ms": 50.0,
            "predicted_n": 3,
            "draft_n": 8,
            "draft_n_accepted": 5,
        },
    }
)
STREAM = [chunk(1, "On"), "", chunk(2, "ce"), "", chunk(3, " upon"), "", LAST, ""]


def test_a_whole_stream() -> None:
    found = parse_stream(STREAM)
    assert (found.finish, found.error, found.text) == ("length", None, "Once upon")
    assert [count for _, count in found.events] == [1, 2, 3]
    assert (found.fresh_prompt_tokens, found.cached_prompt_tokens, found.prompt_s) == (20, 1, 0.05)
    assert (found.drafted_tokens, found.accepted_tokens) == (8, 5)


def test_the_model_may_end_by_itself() -> None:
    assert parse_stream([chunk(1), LAST.replace("limit", "eos")]).finish == "stop"


def test_several_tokens_may_come_at_once() -> None:
    assert [count for _, count in parse_stream([chunk(4), chunk(9), LAST]).events] == [4, 9]


def test_counts_without_timings() -> None:
    lines = [f'data: {{"content": "a", "stop": false, "tokens_predicted": {n}}}' for n in (1, 2)]
    found = parse_stream([*lines, 'data: {"content": "", "stop": true, "stop_type": "limit", "tokens_predicted": 2}'])
    assert [count for _, count in found.events] == [1, 2]
    assert (found.fresh_prompt_tokens, found.prompt_s, found.drafted_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('data: {"error": {"code": 500, "message": "context full", "type": "server_error"}}', "context full"),
        ('error: {"code": 500, "message": "compute failed"}', "compute failed"),
        ("error: out of luck", "out of luck"),
        ('data: {"error": "as a text"}', "as a text"),
        ("error:", "an error without a text"),
    ],
)
def test_error_lines(line: str, error: str) -> None:
    found = parse_stream([chunk(1), line])
    assert (found.finish, found.error) == ("error", error)
    assert len(found.events) == 1


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_a_stream_that_is_cut_off(kept: int) -> None:
    found = parse_stream(STREAM[:kept])
    assert found.finish == "error"
    assert found.error == "the stream ended without its final message"


@given(st.lists(st.one_of(st.text(), st.text().map("data: ".__add__), st.just("data: [1]"), st.just("data: null"))))
def test_no_noise_breaks_the_reader(lines: list[str]) -> None:
    found = parse_stream([*lines, *STREAM])
    counts = [count for _, count in found.events]
    assert counts == sorted(set(counts))
    assert found.finish == "length" or found.error


# Over a real connection

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Answer
    requests: list[tuple[str, Any]]

    def _take(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.requests.append((self.path, body))
        type(self).answer(self)

    do_GET = do_POST = _take  # noqa: N815 - names that the library asks for

    def send(self, body: bytes, status: int = 200, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def serving(answer: Answer, **settings: Any) -> Iterator[tuple[LlamaHttp, list[tuple[str, Any]]]]:
    """A client of a server on loopback that answers so."""
    requests: list[tuple[str, Any]] = []
    handler = type("OneHandler", (Handler,), {"answer": staticmethod(answer), "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = LlamaHttp(f"http://127.0.0.1:{server.server_address[1]}", **settings)
    try:
        yield client, requests
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()


def as_stream(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def test_complete_asks_for_what_a_measurement_needs() -> None:
    ticks = iter(range(100))
    with serving(lambda h: h.send(as_stream(STREAM)), clock=lambda: float(next(ticks))) as (client, requests):
        found = client.complete("Hello", max_tokens=3, seed=7, deadline_s=50)
    ((path, body),) = requests
    assert path == "/completion"
    assert (body["prompt"], body["n_predict"], body["seed"]) == ("Hello", 3, 7)
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (1.0, True, True)
    assert found.finish == "length"
    times = [second for second, _ in found.events]
    assert times == sorted(times)
    assert found.ttft_s == times[0] >= 1


def test_reading_stops_at_the_time_limit_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that each line is at least one piece, and each piece another second.
    monkeypatch.setattr(wire, "_PIECE_BYTES", 64)
    ticks = iter(range(1000))
    endless = as_stream([chunk(n) for n in range(1, 200)])
    with serving(lambda h: h.send(endless), clock=lambda: float(next(ticks))) as (client, _):
        found = client.complete("Hello", max_tokens=500, seed=1, deadline_s=900, decode_limit_s=6)
    assert (found.finish, found.error) == ("time", None)
    assert found.events[-1][0] - found.events[0][0] >= 6
    assert len(found.events) < 8


def test_a_server_that_gives_nothing_until_the_deadline() -> None:
    released = threading.Event()

    def hang(handler: Handler) -> None:
        handler.send(b"", length=10)
        released.wait(10)

    with serving(hang) as (client, _):
        found = client.complete("Hello", max_tokens=3, seed=1, deadline_s=0.05)
        released.set()
    assert (found.finish, found.events) == ("error", ())
    assert found.error == "no token within 0 s"


def test_a_refusal_is_an_error_with_the_servers_own_words() -> None:
    refusal = b'{"error": {"code": 400, "message": "the request exceeds the available context size"}}'
    with serving(lambda h: h.send(refusal, 400)) as (client, _):
        found = client.complete("Hello", max_tokens=3, seed=1, deadline_s=5)
    assert (found.finish, found.error) == ("error", "the request exceeds the available context size")


def test_a_connection_that_breaks_while_the_engine_lives() -> None:
    def break_off(handler: Handler) -> None:
        handler.send(as_stream(STREAM[:2]), length=10_000)
        handler.close_connection = True

    with serving(break_off) as (client, _):
        found = client.complete("Hello", max_tokens=3, seed=1, deadline_s=5)
    assert (found.finish, len(found.events)) == ("error", 1)
    assert found.error is not None
    assert found.error.startswith("the connection broke")


def test_a_connection_that_breaks_because_the_engine_ended() -> None:
    def break_off(handler: Handler) -> None:
        handler.send(as_stream(STREAM[:2]), length=10_000)
        handler.close_connection = True

    with serving(break_off, alive=lambda: False) as (client, _), pytest.raises(VeloError, match="the engine ended"):
        client.complete("Hello", max_tokens=3, seed=1, deadline_s=5)


def test_nobody_listens() -> None:
    with serving(lambda h: None) as (client, _):
        url = client.url
    gone = LlamaHttp(url)
    try:
        with pytest.raises(VeloError, match=f"the engine at {url} does not answer"):
            gone.count_tokens("Hello")
        with pytest.raises(VeloError, match="does not answer"):
            gone.props()
        assert gone.complete("Hello", max_tokens=1, seed=1, deadline_s=1).finish == "error"
    finally:
        gone.close()


def test_tokens_are_counted_by_the_engine() -> None:
    with serving(lambda h: h.send(b'{"tokens": [5, 6, 7]}')) as (client, requests):
        assert client.count_tokens("one two three") == 3
    assert requests == [("/tokenize", {"content": "one two three"})]


@pytest.mark.parametrize("body", [b"not JSON", b'{"count": 3}', b'{"tokens": 3}', b"[]"])
def test_an_odd_count_is_one_clear_error(body: bytes) -> None:
    with serving(lambda h: h.send(body)) as (client, _), pytest.raises(VeloError, match="does not answer"):
        client.count_tokens("Hello")


def test_props() -> None:
    with serving(lambda h: h.send(b'{"total_slots": 2}')) as (client, requests):
        assert client.props() == {"total_slots": 2}
    assert requests == [("/props", None)]
    with serving(lambda h: h.send(b"[]")) as (client, _):
        assert client.props() == {}


def test_a_proxy_from_the_environment_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda h: h.send(b'{"tokens": []}')) as (client, _):
        assert client.count_tokens("") == 0


def test_metrics_by_name() -> None:
    text = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 118
llamacpp:prompt_seconds_total 0.94
llamacpp:predicted_tokens_seconds 4.2e+01
other:thing 3
llamacpp:labelled{slot="1"} 2
llamacpp:no_number nan
"""
    assert parse_metrics(text) == {
        "prompt_tokens_total": 118.0,
        "prompt_seconds_total": 0.94,
        "predicted_tokens_seconds": 42.0,
    }


@given(st.text(max_size=200))
def test_metrics_never_raise(text: str) -> None:
    parse_metrics(text)


# What comes next

LOWEST = -3.4028234663852886e38


def next_token(chosen: object = 7, logprob: object = -4.5, **more: object) -> dict[str, Any]:
    top = [{"id": 4, "token": "a", "bytes": [97], "logprob": -0.5}, {"id": 9, "logprob": -1.25}]
    row = {"id": chosen, "token": "b", "logprob": logprob, "top_logprobs": top}
    return {"content": "b", "completion_probabilities": [row | more]}


def test_the_probabilities_of_the_next_token() -> None:
    with serving(lambda h: h.send(json.dumps(next_token()).encode())) as (client, requests):
        found = client.next_probabilities((1, 2, 3), 2, follower=7, deadline_s=5.0)
    assert found == NextToken({4: -0.5, 9: -1.25}, -4.5)
    ((path, body),) = requests
    assert path == "/completion"
    assert (body["prompt"], body["n_predict"], body["n_probs"]) == ([1, 2, 3], 1, 2)
    assert (body["cache_prompt"], body["post_sampling_probs"]) == (True, False)
    # The token that follows is made the chosen one, so that its own probability is told.
    assert body["logit_bias"] == [[7, 1e6]]
    assert body["temperature"] == 0.0


def test_tokens_of_a_prompt_have_the_one_that_begins_it() -> None:
    with serving(lambda h: h.send(b'{"tokens": [1, 5, 6]}')) as (client, requests):
        assert client.token_ids("two words") == (1, 5, 6)
    assert requests == [("/tokenize", {"content": "two words", "add_special": True})]


def test_a_prompt_that_is_refused_says_why() -> None:
    refusal = b'{"error": {"code": 400, "message": "the request exceeds the available context size"}}'
    with serving(lambda h: h.send(refusal, 400)) as (client, _), pytest.raises(VeloError, match="exceeds the avail"):
        client.next_probabilities((1, 2), 2, follower=7, deadline_s=5.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (next_token(logprob=LOWEST), NextToken({4: -0.5, 9: -1.25}, None)),
        (next_token(chosen=4), NextToken({4: -0.5, 9: -1.25}, None)),
        # Rounding may put a sure token's probability a little above 1; what a float32 cannot hold is left out.
        (
            next_token(top_logprobs=[{"id": 3, "logprob": 1e-7}, {"id": 5, "logprob": LOWEST}]),
            NextToken({3: 0.0}, -4.5),
        ),
        (
            next_token(top_logprobs=[{"id": 3, "logprob": -2}, {"id": 5, "logprob": -1}]),
            NextToken({5: -1, 3: -2}, -4.5),
        ),
        (next_token(top_logprobs=[]), None),
        (next_token(top_logprobs=[{"id": 3, "logprob": None}]), None),
        (next_token(top_logprobs=[{"id": 3, "logprob": float("nan")}]), None),
        ({"content": "b"}, None),
        ({"completion_probabilities": []}, None),
        ([], None),
        (None, None),
    ],
)
def test_parse_next_token(data: object, expected: NextToken | None) -> None:
    found = parse_next_token(data, 7)
    assert found == expected
    if found and expected:
        assert list(found.logprobs) == list(expected.logprobs)


anything = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(anything, anything, anything)
def test_no_answer_breaks_the_reader_of_probabilities(chosen: object, logprob: object, top: object) -> None:
    found = parse_next_token(next_token(chosen, logprob, top_logprobs=top), 7)
    assert found is None or all(value <= 0 for value in found.logprobs.values())
    assert parse_next_token({"completion_probabilities": chosen}, 7) is None
