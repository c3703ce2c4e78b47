from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import FakeOllama, Fault, recorded_lines
from velollm.backends.openai import OpenAiBackend
from velollm.backends.openai_http import ChatStream, OpenAiServer, parse_chat
from velollm.errors import VeloError
from velollm.facts import Facts

MODEL = "tiny-python"


@pytest.fixture
def server(fake: FakeOllama) -> Iterator[OpenAiServer]:
    server = OpenAiServer(f"{fake.url}/v1", MODEL, api_key="mine")
    yield server
    server.close()


def test_a_recorded_answer(server: OpenAiServer, fake: FakeOllama) -> None:
    answer = server.complete("import os", max_tokens=12, seed=3, deadline_s=10)
    assert (answer.finish, answer.error) == ("length", None)
    assert [count for _, count in answer.events] == list(range(1, 13))[-len(answer.events) :]
    assert answer.fresh_prompt_tokens == 31
    assert answer.cached_prompt_tokens is None
    assert answer.text.startswith(" self.")
    (body,) = fake.bodies("/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "import os"}]
    assert (body["max_tokens"], body["seed"], body["stream"]) == (12, 3, True)


def test_a_stream_without_its_end_is_a_failure(server: OpenAiServer, fake: FakeOllama) -> None:
    """Ollama's engine was killed: no error, no finish reason, no [DONE]."""
    fake.faults.append("stream just ends")
    answer = server.complete("import os", max_tokens=12, seed=3, deadline_s=10)
    assert answer.finish == "error"
    assert answer.error == "the stream ended without its final message"
    assert len(answer.events) > 200


@pytest.mark.parametrize(
    ("fault", "words"), [("queue full", "server busy"), ("load fails", "has terminated: exit status 1")]
)
def test_refusals_come_back_as_errors(server: OpenAiServer, fake: FakeOllama, fault: Fault, words: str) -> None:
    fake.faults.append(fault)
    answer = server.complete("import os", max_tokens=12, seed=3, deadline_s=10)
    assert answer.finish == "error"
    assert words in (answer.error or "")


def test_nobody_listens() -> None:
    server = OpenAiServer("http://127.0.0.1:1/v1", MODEL)
    answer = server.complete("x", max_tokens=1, seed=0, deadline_s=5)
    with pytest.raises(VeloError, match="does not list its models") as caught:
        server.models()
    server.close()
    assert "the connection broke" in (answer.error or "")
    assert "/v1" in caught.value.hint


def test_the_backend_measures_a_server_as_it_is(fake: FakeOllama, tmp_path: Path) -> None:
    backend = OpenAiBackend().at(f"{fake.url}/v1")
    assert OpenAiBackend().missing() is not None
    assert backend.missing() is None
    assert backend.knobs == frozenset()
    assert backend.default_knobs(Facts()) == {}
    model = backend.find_model(f"{MODEL}:latest")
    with pytest.raises(VeloError, match="has no model 'absent'"):
        backend.find_model("absent")
    with backend.trial(model, {}, Facts(), log=tmp_path / "log") as running:
        assert running.pids() == ()
        assert running.wait() is None
        assert running.complete("x", max_tokens=12, seed=1, deadline_s=10).error is None


def chunk(**delta: object) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]})


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_comes_before_the_answer(field: str) -> None:
    stream = ChatStream()
    stream.take(chunk(**{field: "hm"}), 0.5)
    stream.take(chunk(content="yes"), 2.0)
    stream.take('data: {"choices":[{"delta":{},"finish_reason":"stop"}]}', 2.1)
    stream.take("data: [DONE]", 2.2)
    answer = stream.completion()
    assert (answer.ttft_s, answer.answer_ttft_s, answer.finish, answer.text) == (0.5, 2.0, "stop", "yes")


def test_cached_tokens_are_not_fresh_ones() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 90}}
    lines = [chunk(content="a"), chunk(content="b"), f"data: {json.dumps({'choices': [], 'usage': usage})}"]
    answer = parse_chat([*lines, "data: [DONE]"])
    assert (answer.fresh_prompt_tokens, answer.cached_prompt_tokens) == (10, 90)
    assert [count for _, count in answer.events] == [2, 4]


def test_an_error_in_the_stream_is_told() -> None:
    answer = parse_chat([chunk(content="a"), 'data: {"error": {"message": "out of memory"}}'])
    assert (answer.finish, answer.error) == ("error", "out of memory")


@given(st.integers(min_value=0, max_value=12))
def test_a_recorded_stream_cut_anywhere_is_a_failure(cut: int) -> None:
    lines = [line for line in recorded_lines("v1-chat-stream") if line]
    assert lines[-1] == "data: [DONE]"
    assert parse_chat(lines[:cut]).finish == "error"
    assert parse_chat(lines).finish == "length"


@given(st.lists(st.text(max_size=40) | st.builds("data:{}".format, st.text(max_size=40)), max_size=8))
def test_no_stream_raises(lines: list[str]) -> None:
    parse_chat(lines)
