"""Ollama's HTTP interface: the calls that VeloLLM makes, and one streamed answer.

Fields and errors: Ollama v0.33.0-rc2, api/types.go and server/routes.go.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import httpx

from velollm.backends.base import Completion, EngineCounters
from velollm.backends.buffers import parse_buffers
from velollm.backends.llamahttp import LlamaHttp
from velollm.backends.ollama_log import parse_loads
from velollm.backends.streaming import CONNECT_S, Question, StreamingServer, http_client, share_tokens
from velollm.errors import VeloError

_LOAD_S = 600.0
_FOR_EVER_S = 10 * 365 * 86400.0
_UNLOAD_S = 10.0
_CHARACTERS_PER_TOKEN = 4
Options = Mapping[str, object]


class OllamaApi:
    """One Ollama server. Every failure to reach it is a `VeloError`; refusals are `OllamaRefusalError`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client = http_client(self.url)

    def close(self) -> None:
        self.client.close()

    def get(self, path: str) -> dict[str, Any]:
        """JSON of a GET."""
        return self._json(lambda: self.client.get(path))

    def post(self, path: str, body: Mapping[str, object], *, timeout_s: float = _LOAD_S) -> dict[str, Any]:
        """JSON of a POST that does not stream; the last line of a streamed one."""
        return self._json(lambda: self.client.post(path, json=body, timeout=httpx.Timeout(CONNECT_S, read=timeout_s)))

    def delete(self, path: str, body: Mapping[str, object]) -> None:
        """DELETE with a body."""
        self._json(lambda: self.client.request("DELETE", path, json=body))

    def _json(self, call: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            reply = call()
        except httpx.HTTPError as error:
            raise VeloError(
                f"the Ollama server at {self.url} does not answer: {error or type(error).__name__}",
                "start it with `ollama serve`, or set OLLAMA_HOST to where it listens",
            ) from error
        lines = [line for line in reply.text.splitlines() if line.strip()]
        data = _parse_object(lines[-1]) if lines else {}
        if reply.status_code >= 400 or "error" in data:
            raise OllamaRefusalError(
                reply.status_code, str(data.get("error") or reply.text.strip()[:200] or "no reason")
            )
        return data

    def version(self) -> str:
        """Version as the server tells it; a source build says 0.0.0."""
        return str(self.get("/api/version").get("version", ""))

    def tags(self) -> list[dict[str, Any]]:
        """The installed models."""
        found = self.get("/api/tags").get("models")
        return found if isinstance(found, list) else []

    def loaded(self) -> list[dict[str, Any]]:
        """The models in memory (`/api/ps`)."""
        found = self.get("/api/ps").get("models")
        return found if isinstance(found, list) else []

    def show(self, model: str, *, verbose: bool = False) -> dict[str, Any]:
        """Everything about one model; with ``verbose`` lists too. Raises `OllamaRefusalError` (404) without it."""
        return self.post("/api/show", {"model": model, "verbose": True} if verbose else {"model": model})

    def load(self, model: str, options: Options, keep_alive: int | str | None = None) -> None:
        """Load a model, and wait until it is there."""
        body: dict[str, object] = {"model": model, "options": dict(options), "stream": False}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        self.post("/api/generate", body)

    def unload(self, model: str) -> None:
        """Take a model out of memory now."""
        self.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})


class OllamaRefusalError(VeloError):
    """The server answered, and said no; ``status`` is its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Ollama refused: {reason}", "see the server's log (`journalctl -u ollama`)")
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. ``expires_at`` None: it stays for ever, or the server does not say."""

    name: str
    size_bytes: int
    size_vram_bytes: int
    expires_at: datetime | None = None
    context_tokens: int | None = None

    def keep_alive_left_s(self, now: datetime | None = None) -> int:
        """Seconds that it has left, at least 1; -1 for ever."""
        if self.expires_at is None:
            return -1
        left_s = (self.expires_at - (now or datetime.now(UTC))).total_seconds()
        return -1 if left_s > _FOR_EVER_S else max(1, round(left_s))


def parse_loaded(data: Mapping[str, Any]) -> LoadedModel:
    """One entry of `/api/ps`. A keep-alive for ever is told as a time some 290 years ahead."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", str(data.get("expires_at", "")))
    try:
        expires_at: datetime | None = datetime.fromisoformat(text)
    except ValueError:
        expires_at = None
    if expires_at is not None and expires_at.tzinfo is None:
        expires_at = expires_at.replace(tzinfo=UTC)
    return LoadedModel(
        name=str(data.get("name", "")),
        size_bytes=_positive(data.get("size")) or 0,
        size_vram_bytes=_positive(data.get("size_vram")) or 0,
        expires_at=expires_at,
        context_tokens=_positive(data.get("context_length")),
    )


class OllamaServer(StreamingServer):
    """One model on an Ollama server, always asked with the same options, so that it is never loaded anew.

    ``child_url`` is the address of the llama-server behind it, where we may know it: only that one counts tokens.
    ``log``: what a private server has said so far; only such a one may be told to unload the model.
    """

    _path = "/api/generate"

    def __init__(
        self,
        api: OllamaApi,
        model: str,
        options: Options,
        *,
        child_url: str | None = None,
        pids: Callable[[], tuple[int, ...]] = tuple,
        wait: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        keep_alive: int | None = None,
        log: Callable[[], str] | None = None,
    ) -> None:
        self.url = api.url
        self._api, self._model, self._options = api, model, dict(options)
        self._child_url, self._pids, self._wait = child_url, pids, wait
        self._clock, self._keep_alive = clock, keep_alive
        self._log = log
        self._client = api.client
        self._answer: AnswerStream | None = None
        self._gone_url: str | None = None

    def pids(self) -> tuple[int, ...]:
        return self._pids()

    def wait(self) -> int | None:
        return self._wait()

    def count_tokens(self, text: str) -> int:
        """By the child's own tokenizer; where that is out of reach, a rough length, good enough to size a prompt."""
        if (url := self._found_child()) is not None:
            child = LlamaHttp(url)
            try:
                return child.count_tokens(text)
            finally:
                child.close()
        return max(1, len(text) // _CHARACTERS_PER_TOKEN)

    def _body(self, question: Question) -> dict[str, object]:
        options = {"num_predict": question.max_tokens, "temperature": 1.0, "seed": question.seed}
        body = self._request(question.prompt, options)
        if question.schema is not None:
            body["format"] = dict(question.schema)
        return body

    def _reader(self) -> AnswerStream:
        self._answer = AnswerStream()
        return self._answer

    def _refusal(self, body: bytes) -> str:
        return _refusal(body)

    def greedy_text(self, prompt: str, *, max_tokens: int, deadline_s: float) -> str | None:
        body = self._request(prompt, {"num_predict": max_tokens, "temperature": 0.0, "seed": 0})
        try:
            text = self._api.post(self._path, {**body, "stream": False}, timeout_s=deadline_s).get("response")
        except VeloError:
            return None
        return text if isinstance(text, str) else None

    def counters(self) -> EngineCounters | None:
        """Of a private server only: other people's requests would count too."""
        if self._log is None or (url := self._found_child()) is None:
            return None
        child = LlamaHttp(url)
        try:
            found = child.metrics()
        finally:
            child.close()
        if "prompt_tokens_total" not in found:
            return None
        drafted, accepted = (
            int(found.get(f"spec_decode_num_{kind}_tokens_total", 0)) for kind in ("draft", "accepted")
        )
        return EngineCounters(int(found["prompt_tokens_total"]), drafted, accepted)

    def buffers(self) -> dict[str, int]:
        loads = parse_loads(self._log()) if self._log is not None else []
        return parse_buffers(loads[-1].text) if loads else {}

    def load_s(self) -> float | None:
        return None if self._answer is None else self._answer.load_s

    def unload(self) -> bool:
        if self._log is None:
            return False
        self._api.unload(self._model)
        until_s = time.monotonic() + _UNLOAD_S
        while self._api.loaded() and time.monotonic() < until_s:
            time.sleep(0.05)
        self._gone_url, self._child_url = self._child_url, None
        return True

    def _found_child(self) -> str | None:
        """The child's address; after an unload it is another, which the log tells."""
        if self._child_url is None and self._log is not None:
            loads = parse_loads(self._log())
            url = loads[-1].url if loads else None
            self._child_url = None if url == self._gone_url else url
        return self._child_url

    def _request(self, prompt: str, options: Options) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._model,
            "prompt": prompt,
            "raw": True,
            "options": {**self._options, **options},
        }
        if self._keep_alive is not None:
            body["keep_alive"] = self._keep_alive
        return body


class AnswerStream:
    """Collects the lines of one `/api/generate` or `/api/chat` stream.

    A stream that ends without its final message is a failure, not a short answer: the engine's process died, or
    Ollama gave up on more than 30 equal chunks (llm/llama_server.go:1692-1703).
    """

    def __init__(self) -> None:
        self.finished = False
        self.events: list[tuple[float, int]] = []
        self._answer_s: float | None = None
        self._texts: list[str] = []
        self._final: dict[str, Any] = {}
        self._error: str | None = None

    def take(self, line: str, now_s: float) -> None:
        """One line, received ``now_s`` seconds after the request was sent."""
        data = _parse_object(line)
        if "error" in data:
            self._error, self.finished = str(data["error"])[:300] or "no reason given", True
            return
        answer, thought = _texts_of(data)
        if answer or thought:
            self._texts.append(answer)
            self.events.append((now_s, len(self.events) + 1))
        if answer and self._answer_s is None:
            self._answer_s = now_s
        if data.get("done") is True:
            self._final, self.finished = data, True

    def completion(self, error: str | None = None) -> Completion:
        """What was collected; ``error`` is what ended it."""
        error = error or self._error
        return Completion(
            events=share_tokens(self.events, _positive(self._final.get("eval_count"))),
            finish="error" if error else self._finish(),
            fresh_prompt_tokens=_positive(self._final.get("prompt_eval_count")),
            prompt_s=_seconds(self._final.get("prompt_eval_duration")),
            answer_ttft_s=self._answer_s,
            error=error,
            text="".join(self._texts),
        )

    @property
    def load_s(self) -> float | None:
        """What the server says it took until the model was there for this answer."""
        return _seconds(self._final.get("load_duration"))

    def _finish(self) -> Literal["length", "stop", "time"]:
        if not self._final:
            return "time"
        return "length" if self._final.get("done_reason") == "length" else "stop"


def parse_answer(lines: Iterable[str]) -> Completion:
    """A completion from the lines of a recorded stream, all received at once."""
    stream = AnswerStream()
    for line in lines:
        stream.take(line, 0.0)
    return stream.completion(None if stream.finished else "the stream ended without its final message")


def _texts_of(data: Mapping[str, Any]) -> tuple[str, str]:
    message = data.get("message")
    source = message if isinstance(message, dict) else data
    answer = source.get("content" if source is message else "response")
    thought = source.get("thinking")
    return (answer if isinstance(answer, str) else "", thought if isinstance(thought, str) else "")


def _parse_object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _refusal(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return str(_parse_object(text).get("error") or text.strip()[:200] or "refused without a reason")


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _seconds(value_ns: object) -> float | None:
    return value_ns / 1e9 if isinstance(value_ns, (int, float)) and value_ns > 0 else None
