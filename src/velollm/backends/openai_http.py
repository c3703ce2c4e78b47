"""The HTTP interface that most local servers share: OpenAI's `/v1`.

Fields: OpenAI's API reference (chat completions, streaming); what Ollama 0.33 really sends is in its recordings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import httpx

from velollm.backends.base import Completion
from velollm.backends.llamahttp import error_text
from velollm.backends.streaming import CONNECT_S, Question, StreamingServer, http_client, share_tokens
from velollm.errors import VeloError

_CHARACTERS_PER_TOKEN = 4
_END = "[DONE]"


class OpenAiServer(StreamingServer):
    """One model on any server that speaks `/v1`; it is not ours, so there is nothing to stop."""

    _path = "chat/completions"

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._clock = clock
        self._client = http_client(self.url, headers={"Authorization": f"Bearer {api_key}"} if api_key else None)

    def close(self) -> None:
        self._client.close()

    def pids(self) -> tuple[int, ...]:
        return ()

    def wait(self) -> int | None:
        return None

    def models(self) -> tuple[str, ...]:
        """Names of the models that the server offers.

        Raises:
            VeloError: it does not answer, or not with a list of models.
        """
        try:
            reply = self._client.get("models")
            reply.raise_for_status()
            return tuple(str(model["id"]) for model in reply.json()["data"] or ())
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise VeloError(
                f"the server at {self.url} does not list its models: {error or type(error).__name__}",
                "give the address that ends in /v1, for example --url http://127.0.0.1:8000/v1",
            ) from error

    def count_tokens(self, text: str) -> int:
        """A rough length, good enough to size a prompt: this interface has no tokenizer."""
        return max(1, len(text) // _CHARACTERS_PER_TOKEN)

    def _body(self, question: Question) -> dict[str, object]:
        """A chat of one message. ``ignore_eos`` is no part of this interface."""
        body: dict[str, object] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": question.max_tokens,
            "temperature": 1.0,
            "seed": question.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if question.schema is not None:
            named = {"name": "answer", "schema": dict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def _reader(self) -> ChatStream:
        return ChatStream()

    def _refusal(self, body: bytes) -> str:
        return error_text(body)

    def greedy_text(self, prompt: str, *, max_tokens: int, deadline_s: float) -> str | None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        try:
            timeout = httpx.Timeout(CONNECT_S, read=deadline_s)
            reply = self._client.post(self._path, json=body, timeout=timeout)
            reply.raise_for_status()
            text = reply.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError):
            return None
        return text if isinstance(text, str) else None


class ChatStream:
    """Collects the events of one streamed chat completion, up to its `[DONE]`.

    Without that line the stream was cut: Ollama sends neither an error nor a finish reason when its engine dies.
    """

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []
        self.finished = False
        self._answer_s: float | None = None
        self._texts: list[str] = []
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._error: str | None = None

    def take(self, line: str, now_s: float) -> None:
        """One line, received ``now_s`` seconds after the request was sent."""
        if not line.startswith("data:"):
            return
        text = line[5:].strip()
        if text == _END:
            self.finished = True
            return
        try:
            data = json.loads(text)
        except ValueError:
            return
        if not isinstance(data, dict):
            return
        if "error" in data:
            self._error, self.finished = error_text(text.encode()), True
            return
        self._take_chunk(data, now_s)

    def _take_chunk(self, data: Mapping[str, Any], now_s: float) -> None:
        if isinstance(usage := data.get("usage"), dict):
            self._usage = usage
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        if isinstance(reason := choice.get("finish_reason"), str):
            self._reason = reason
        answer, thought = _texts_of(choice)
        if answer or thought:
            self._texts.append(answer)
            self.events.append((now_s, len(self.events) + 1))
        if answer and self._answer_s is None:
            self._answer_s = now_s

    def completion(self, error: str | None = None) -> Completion:
        """What was collected; ``error`` is what ended it."""
        error = error or self._error
        prompt, cached = self._prompt_tokens()
        return Completion(
            events=share_tokens(self.events, _whole(self._usage.get("completion_tokens"))),
            finish="error" if error else self._finish(),
            fresh_prompt_tokens=prompt,
            cached_prompt_tokens=cached,
            answer_ttft_s=self._answer_s,
            error=error,
            text="".join(self._texts),
        )

    def _prompt_tokens(self) -> tuple[int | None, int | None]:
        """Fresh and cached tokens of the prompt, where the server tells them apart; else all as fresh."""
        total = _whole(self._usage.get("prompt_tokens"))
        details = self._usage.get("prompt_tokens_details")
        cached = _whole(details.get("cached_tokens")) if isinstance(details, dict) else None
        return (total if total is None else max(0, total - (cached or 0))), cached

    def _finish(self) -> Literal["length", "stop", "time"]:
        if not self.finished:
            return "time"
        return "length" if self._reason == "length" else "stop"


def parse_chat(lines: Iterable[str]) -> Completion:
    """A completion from the lines of a recorded stream, all received at once."""
    stream = ChatStream()
    for line in lines:
        stream.take(line, 0.0)
    return stream.completion(None if stream.finished else "the stream ended without its final message")


def _texts_of(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Answer and thinking in one chunk; servers name the latter in two ways (vLLM and llama-server, Ollama)."""
    delta = choice.get("delta")
    source: Mapping[str, Any] = delta if isinstance(delta, dict) else {}
    answer = source.get("content")
    thought = source.get("reasoning_content") or source.get("reasoning")
    return (answer if isinstance(answer, str) else "", thought if isinstance(thought, str) else "")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
