"""Servers that hang, lie, break off, are full or go away: a clear reason each time, and what was measured is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from velollm.backends.openai_http import OpenAiServer
from velollm.bench.design import Design
from velollm.bench.exchange import Request, ask
from velollm.bench.result import render_result
from velollm.bench.run import Arm, BrokenError, Budget, run_bench
from velollm.bench.samples import single_figures
from velollm.bench.sizes import Answer
from velollm.bench.workload import load_workload
from velollm.errors import VeloError

REQUEST = Request("Well?", 1, 0)
ANSWER = Answer(4, 5.0)


class BadServer(ThreadingHTTPServer):
    """Answers well until ``behaviour`` names something else for the n-th request; ``over`` ends what hangs."""

    daemon_threads = True

    def __init__(self, behaviour: Callable[[int], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.over = threading.Event()
        self.asked = 0
        self.lock = threading.Lock()

    def number(self) -> int:
        with self.lock:
            self.asked += 1
            return self.asked - 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Readers that leave are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BadServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quietly."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = self.server.behaviour(self.server.number())
        self.close_connection = True
        if kind == "hangs":
            self.server.over.wait(30)
            return
        if kind == "drops the connection":
            return
        if kind == "is full":
            self.reply(503, json.dumps({"error": {"message": "server busy, please try again"}}))
            return
        if kind == "fails without a word":
            self.reply(500, "")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for line in self.lines(kind, int(body["max_tokens"])):
            self.wfile.write(f"data: {line}\n\n".encode())

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def lines(self, kind: str, tokens: int) -> Iterator[str]:
        if kind == "talks garbage":
            yield from ("\x00\x7f{", "[1, 2", '{"choices": 7}', "null", "[DONE]")
            return
        if kind == "says an error half-way":
            yield json.dumps({"choices": [{"delta": {"content": "one"}}]})
            yield json.dumps({"error": {"message": "out of memory"}})
            return
        for place in range(tokens):
            if kind == "breaks off" and place == 2:
                return
            yield json.dumps({"choices": [{"delta": {"content": f"{place} "}}]})
        yield json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]})
        yield "[DONE]"


@contextmanager
def bad_server(behaviour: Callable[[int], str]) -> Iterator[tuple[BadServer, OpenAiServer]]:
    server = BadServer(behaviour)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with closing(OpenAiServer(f"http://127.0.0.1:{server.server_port}/v1", "m")) as client:
            yield server, client
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hangs", "no token within"),
        ("drops the connection", "the connection broke"),
        ("is full", "server busy, please try again"),
        ("fails without a word", "an error without a text"),
        ("talks garbage", "no token came"),
        ("says an error half-way", "out of memory"),
        ("breaks off", "the stream ended without its final message"),
    ],
)
def test_each_fault_has_its_reason(kind: str, reason: str) -> None:
    with bad_server(lambda _: kind) as (_, client):
        found = single_figures(ask(client, REQUEST, ANSWER, 0.3), 1)
    assert reason in (found.error or "")
    assert (found.ttft_s, found.decode_tokens_per_s) == (None, None)


def run(behaviour: Callable[[int], str]) -> Any:
    with bad_server(behaviour) as (_, client):

        @contextmanager
        def start() -> Iterator[OpenAiServer]:
            yield client

        return run_bench(
            [Arm("default", start)], load_workload("chat"), Budget(60.0), design=Design(levels=(), rounds=12)
        )


def test_a_server_that_comes_back_costs_one_round() -> None:
    result = run(lambda n: "drops the connection" if n == 8 else "good")
    failed = [sample for sample in result.runs if sample.error]
    assert len(failed) == 1
    assert result.incomplete is None
    assert any("had a failed request" in note for note in result.notes)
    assert result.summary("default")["ttft"].values == len(result.runs) - 1


def test_a_server_that_stays_away_leaves_what_was_measured() -> None:
    with pytest.raises(BrokenError) as caught:
        run(lambda n: "good" if n < 9 else "is full")
    partial = caught.value.partial
    assert "failed 3 times in a row" in caught.value.message
    assert "server busy" in caught.value.message
    good = [sample for sample in partial.runs if not sample.error]
    assert good
    assert render_result(partial)["incomplete"] == caught.value.message


def test_a_server_that_never_answers_is_an_error_and_nothing_else() -> None:
    with pytest.raises(VeloError) as caught:
        run(lambda _: "breaks off")
    assert not isinstance(caught.value, BrokenError)
    assert "does not answer" in caught.value.message
