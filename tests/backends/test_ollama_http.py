from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import FakeOllama, Fault, recorded, recorded_lines
from velollm.backends import wire
from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError, OllamaServer, parse_answer, parse_loaded
from velollm.errors import VeloError

MODEL = "tiny-python"


@pytest.fixture
def api(fake: FakeOllama) -> Iterator[OllamaApi]:
    api = OllamaApi(fake.url + "/")
    yield api
    api.close()


def complete(api: OllamaApi, **options: object) -> OllamaServer:
    return OllamaServer(api, MODEL, options, keep_alive=-1)


def test_reading_calls(api: OllamaApi) -> None:
    assert api.version() == "0.33.0-rc2"
    assert [tag["name"] for tag in api.tags()] == ["tiny-python:latest"]
    assert api.loaded() == []
    assert api.show(MODEL)["model_info"]["llama.block_count"] == 6


def test_load_and_unload(api: OllamaApi, fake: FakeOllama) -> None:
    api.load(MODEL, {"num_ctx": 512}, keep_alive=-1)
    assert [model["name"] for model in api.loaded()] == ["tiny-python:latest"]
    assert parse_loaded(api.loaded()[0]).keep_alive_left_s() == -1
    api.unload(MODEL)
    assert api.loaded() == []
    first, second = fake.bodies("/api/generate")
    assert first == {"model": MODEL, "options": {"num_ctx": 512}, "stream": False, "keep_alive": -1}
    assert second["keep_alive"] == 0
    assert "prompt" not in second


def test_refusals_carry_status_and_reason(api: OllamaApi) -> None:
    with pytest.raises(OllamaRefusalError, match="model 'absent:latest' not found") as caught:
        api.show("absent")
    assert caught.value.status == 404


def test_an_error_line_in_a_stream_of_status_200_is_a_refusal(api: OllamaApi, fake: FakeOllama) -> None:
    fake.faults.append("killed mid-stream")
    with pytest.raises(OllamaRefusalError, match="unexpected EOF"):
        api.load(MODEL, {})


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("queue full", 503, "server busy, please try again.  maximum pending requests exceeded"),
        ("load fails", 500, "llama-server process has terminated: exit status 1"),
    ],
)
def test_failing_loads(api: OllamaApi, fake: FakeOllama, fault: Fault, status: int, reason: str) -> None:
    fake.faults.append(fault)
    with pytest.raises(OllamaRefusalError) as caught:
        api.load(MODEL, {})
    assert (caught.value.status, caught.value.reason) == (status, reason)


def test_nobody_listens() -> None:
    api = OllamaApi("http://127.0.0.1:1")
    with pytest.raises(VeloError, match="does not answer") as caught:
        api.version()
    api.close()
    assert "ollama serve" in caught.value.hint


def test_one_streamed_answer(api: OllamaApi, fake: FakeOllama) -> None:
    answer = complete(api, num_ctx=512).complete("import os", max_tokens=24, seed=7, deadline_s=20)
    assert answer.finish == "length"
    assert answer.error is None
    assert [count for _, count in answer.events] == list(range(1, 25))
    assert answer.fresh_prompt_tokens == 31
    assert answer.text.startswith(" self.name = name\n")
    assert answer.ttft_s is not None
    assert answer.ttft_s == answer.answer_ttft_s
    body = fake.bodies("/api/generate")[0]
    assert body["raw"] is True
    assert body["keep_alive"] == -1
    assert body["options"] == {"num_ctx": 512, "num_predict": 24, "temperature": 1.0, "seed": 7}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("killed mid-stream", "unexpected EOF"),
        ("stream just ends", "ended without its final message"),
        ("queue full", "maximum pending requests exceeded"),
        ("load fails", "llama-server process has terminated: exit status 1"),
        ("load fails with a reason", "quantized V cache requires flash_attn"),
    ],
)
def test_a_broken_answer_is_an_error_and_never_a_short_one(
    api: OllamaApi, fake: FakeOllama, fault: Fault, error: str
) -> None:
    server = complete(api)
    fake.faults.append(fault)
    broken = server.complete("import os", max_tokens=24, seed=7, deadline_s=20)
    assert broken.finish == "error"
    assert error in (broken.error or "")
    assert server.complete("import os", max_tokens=24, seed=7, deadline_s=20).finish == "length"


def test_tokens_before_the_break_are_kept(api: OllamaApi, fake: FakeOllama) -> None:
    fake.faults.append("killed mid-stream")
    broken = complete(api).complete("import os", max_tokens=2000, seed=3, deadline_s=20)
    assert len(broken.events) == len(recorded_lines("fault-child-killed-mid-stream", "faults")) - 1


def test_reading_stops_at_the_decode_limit(api: OllamaApi, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that each line is at least one piece, and each piece another second.
    monkeypatch.setattr(wire, "_PIECE_BYTES", 64)
    times = iter(float(n) for n in range(1000))
    server = OllamaServer(api, MODEL, {}, clock=lambda: next(times))
    answer = server.complete("import os", max_tokens=24, seed=7, deadline_s=20, decode_limit_s=3)
    assert answer.finish == "time"
    assert answer.error is None
    assert 1 <= len(answer.events) <= 4
    assert answer.events[-1][0] - answer.events[0][0] >= 3


def test_a_server_that_is_gone_breaks_the_answer() -> None:
    api = OllamaApi("http://127.0.0.1:1")
    answer = complete(api).complete("import os", max_tokens=4, seed=7, deadline_s=5)
    api.close()
    assert answer.finish == "error"
    assert "connection broke" in (answer.error or "")


def test_only_a_private_server_is_told_to_unload(api: OllamaApi) -> None:
    api.load(MODEL, {}, keep_alive=-1)
    assert not complete(api).unload()
    assert api.loaded()
    log = 'msg="starting llama-server" cmd="llama-server --port 1"\nload_tensors: CPU model buffer size = 2.00 MiB\n'
    private = OllamaServer(api, MODEL, {}, child_url="http://127.0.0.1:1", log=lambda: log)
    assert private.buffers() == {"weights": 2 << 20}
    assert private.unload()
    assert api.loaded() == []
    # The child that is gone counts nothing any more; the next one's address is in the log.
    assert private.count_tokens("eight letters") == 3
    assert private.counters() is None


def test_a_greedy_answer_is_asked_for_without_chance(api: OllamaApi, fake: FakeOllama) -> None:
    assert complete(api).greedy_text("import os", max_tokens=24, deadline_s=5)
    assert fake.bodies("/api/generate")[-1]["options"]["temperature"] == 0.0
    fake.faults.append("queue full")
    assert complete(api).greedy_text("import os", max_tokens=24, deadline_s=5) is None


def test_tokens_without_a_child_are_a_rough_length(api: OllamaApi) -> None:
    assert complete(api).count_tokens("x" * 400) == 100
    assert complete(api).count_tokens("") == 1


@pytest.mark.parametrize("name", ["generate-stream", "generate-stream-cached-prefix", "chat-stream"])
def test_recorded_streams(name: str) -> None:
    answer = parse_answer(recorded_lines(name))
    assert answer.finish == "length"
    assert answer.events[-1][1] == 24
    assert answer.fresh_prompt_tokens is not None
    assert answer.prompt_s is not None


def test_a_chat_stream_without_its_final_message_is_a_failure() -> None:
    answer = parse_answer(recorded_lines("chat-stream")[:-1])
    assert answer.finish == "error"
    assert len(answer.events) == 24


def line(**fields: object) -> str:
    return json.dumps({"model": MODEL, "done": False, **fields})


def test_thinking_comes_before_the_answer() -> None:
    from velollm.backends.ollama_http import AnswerStream

    stream = AnswerStream()
    stream.take(line(message={"role": "assistant", "content": "", "thinking": "hm"}), 0.5)
    stream.take(line(message={"role": "assistant", "content": "yes"}), 2.0)
    stream.take(line(message={"content": ""}, done=True, done_reason="stop", eval_count=2), 2.5)
    answer = stream.completion()
    assert (answer.ttft_s, answer.answer_ttft_s) == (0.5, 2.0)
    assert (answer.finish, answer.text) == ("stop", "yes")


def test_tokens_without_text_are_counted() -> None:
    answer = parse_answer([line(response="a"), line(response="b"), line(response="", done=True, eval_count=6)])
    assert [count for _, count in answer.events] == [3, 6]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_no_stream_raises(lines: list[str]) -> None:
    answer = parse_answer(lines)
    assert answer.finish == "error"
    assert answer.events == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["response", "message", "done", "error", "eval_count", "content", "thinking"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=6))
def test_no_json_raises(values: list[object]) -> None:
    answer = parse_answer(json.dumps(value) for value in values)
    assert answer.finish in ("error", "stop", "length")


def test_recorded_loaded_models() -> None:
    now = datetime(2026, 11, 23, 13, 9, 8, 123189, tzinfo=UTC)
    loaded = parse_loaded(recorded("ps-loaded")["body"]["models"][0])
    assert (loaded.name, loaded.size_bytes, loaded.size_vram_bytes) == ("tiny-python:latest", 25794968, 0)
    assert loaded.context_tokens == 2048
    assert loaded.keep_alive_left_s(now) == 300
    assert loaded.keep_alive_left_s(now + timedelta(hours=1)) == 1
    assert parse_loaded(recorded("ps-forever")["body"]["models"][0]).keep_alive_left_s(now) == -1


def test_a_loaded_model_without_figures() -> None:
    loaded = parse_loaded({"name": "m", "size": None, "expires_at": "soon"})
    assert (loaded.size_bytes, loaded.expires_at, loaded.keep_alive_left_s()) == (0, None, -1)
