"""llama.cpp's own HTTP interface, which the embedded engine and `llama-server` share.

Endpoints and fields: llama.cpp, tools/server/README.md (`/completion`, `/tokenize`, `/props`).
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import httpx

from velollm.backends.base import Completion, NextToken
from velollm.backends.buffers import parse_buffers
from velollm.backends.streaming import CONNECT_S, Question, StreamingServer, StreamReader, http_client
from velollm.errors import EngineError, VeloError

# llama.cpp b10488, tools/server/server-context.cpp: `llamacpp:NAME VALUE`, one a line.
_METRIC = re.compile(r"llamacpp:(\w{1,64}) ([0-9]{1,18}(?:\.[0-9]{1,18})?(?:e[+-]?[0-9]{1,3})?)")

# Added to a token's logit, it leaves no doubt which one is chosen (logits are some tens at most).
_CERTAIN = 1e6
# Below it there is only what a float32 cannot hold: llama.cpp b10488, tools/server/server-task.cpp:306 writes the
# logarithm of a probability of 0 as the lowest float32.
_LEAST_LOGPROB = -1e4


class LlamaHttp(StreamingServer):
    """A llama-server interface at ``url``; ``alive`` tells whether the process behind it runs, ``why`` why not."""

    _path = "/completion"

    def __init__(
        self,
        url: str,
        *,
        pids: tuple[int, ...] = (),
        alive: Callable[[], bool] = lambda: True,
        wait: Callable[[], int | None] = lambda: None,
        why: Callable[[], str] = lambda: "it does not say why",
        log: Callable[[], str] = str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.url = url
        self._pids = pids
        self._alive = alive
        self._wait = wait
        self._why = why
        self._log = log
        self._clock = clock
        self._client = http_client(url)

    def close(self) -> None:
        self._client.close()

    def pids(self) -> tuple[int, ...]:
        return self._pids

    def wait(self) -> int | None:
        return self._wait()

    def buffers(self) -> dict[str, int]:
        return parse_buffers(self._log())

    def greedy_text(self, prompt: str, *, max_tokens: int, deadline_s: float) -> str | None:
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0.0, "cache_prompt": False}
        try:
            reply = self._client.post(self._path, json=body, timeout=httpx.Timeout(CONNECT_S, read=deadline_s))
            reply.raise_for_status()
            text = reply.json()["content"]
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return None
        return text if isinstance(text, str) else None

    def metrics(self) -> dict[str, float]:
        """Values of the engine's `/metrics` that carry no labels; empty where it has none."""
        try:
            reply = self._client.get("/metrics")
            reply.raise_for_status()
        except httpx.HTTPError:
            return {}
        return parse_metrics(reply.text)

    def props(self) -> dict[str, object]:
        """The engine's `/props`: slots, context, build."""
        data = self._get_json("/props")
        return data if isinstance(data, dict) else {}

    def busy_slots(self) -> int:
        """Slots that are at work on an answer now. Raises `VeloError` where the engine does not tell."""
        slots = self._get_json("/slots")
        if not isinstance(slots, list):
            raise VeloError(f"the engine at {self.url} does not tell its slots", "it may be too old")
        return sum(1 for slot in slots if isinstance(slot, dict) and slot.get("is_processing") is True)

    def count_tokens(self, text: str) -> int:
        try:
            reply = self._client.post("/tokenize", json={"content": text})
            reply.raise_for_status()
            return len(reply.json()["tokens"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise self._gone(error) from error

    def token_ids(self, text: str) -> tuple[int, ...] | None:
        try:
            reply = self._client.post("/tokenize", json={"content": text, "add_special": True})
            reply.raise_for_status()
            return tuple(int(token) for token in reply.json()["tokens"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise self._gone(error) from error

    def next_probabilities(
        self, tokens: Sequence[int], count: int, *, follower: int, deadline_s: float
    ) -> NextToken | None:
        """Softmax over the raw logits of the whole vocabulary, of which the likeliest ``count`` are told: llama.cpp
        b10488, tools/server/server-common.cpp:1490 (``get_token_probabilities``), server-context.cpp:1929; with
        ``post_sampling_probs`` they would be those that the samplers left. The chosen token's own probability comes
        from all of them (server-context.cpp:1934), so ``follower`` is made the chosen one.
        """
        body: dict[str, object] = {
            "prompt": list(tokens),
            "n_predict": 1,
            "n_probs": count,
            "post_sampling_probs": False,
            "temperature": 0.0,
            "logit_bias": [[follower, _CERTAIN]],
            "cache_prompt": True,
        }
        try:
            reply = self._client.post(self._path, json=body, timeout=httpx.Timeout(CONNECT_S, read=deadline_s))
            if reply.status_code != 200:
                raise VeloError(
                    f"the engine refuses a prompt of {len(tokens):,} tokens: {error_text(reply.content)}",
                    "give it a larger context",
                )
            return parse_next_token(reply.json(), follower)
        except (httpx.HTTPError, ValueError) as error:
            raise self._gone(error) from error

    def _body(self, question: Question) -> dict[str, object]:
        body: dict[str, object] = {
            "prompt": question.prompt,
            "n_predict": question.max_tokens,
            "seed": question.seed,
            "temperature": 1.0,
            "ignore_eos": question.ignore_eos and question.schema is None,
            "stream": True,
            "cache_prompt": True,
            "timings_per_token": True,
            "return_tokens": False,
        }
        if question.schema is not None:
            body["json_schema"] = dict(question.schema)
        return body

    def _reader(self) -> StreamReader:
        return _Reader()

    def _refusal(self, body: bytes) -> str:
        return error_text(body)

    def _broken(self, error: httpx.HTTPError, reader: StreamReader) -> Completion:
        if not self._alive():
            raise self._gone(error) from error
        return super()._broken(error, reader)

    def _get_json(self, path: str) -> object:
        try:
            reply = self._client.get(path)
            reply.raise_for_status()
            return reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> VeloError:
        if self._alive():
            return VeloError(f"the engine at {self.url} does not answer: {error}", "try again with a smaller model")
        return EngineError(
            "the engine ended in the middle of its work",
            self._why(),
            "where memory was short, try --profile low-memory",
        )


class _Reader:
    """Collects the events of one streamed completion."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []
        self.finished = False
        self._timings: dict[str, float] = {}
        self._texts: list[str] = []
        self._stop_type = ""
        self._error: str | None = None

    def take(self, line: str, now_s: float) -> None:
        """One line of the event stream, received ``now_s`` seconds after the request was sent."""
        if line.startswith("error:"):
            self._error, self.finished = error_text(line[6:].encode()), True
            return
        if not line.startswith("data:"):
            return
        try:
            data = json.loads(line[5:])
        except ValueError:
            return
        if not isinstance(data, dict):
            return
        if "error" in data:
            self._error, self.finished = error_text(line[5:].encode()), True
            return
        self._take_chunk(data, now_s)

    def _take_chunk(self, data: dict[str, object], now_s: float) -> None:
        timings = data.get("timings")
        if isinstance(timings, dict):
            self._timings = timings
        if isinstance(text := data.get("content"), str):
            self._texts.append(text)
        if data.get("stop") is True:
            self.finished = True
            self._stop_type = str(data.get("stop_type", ""))
        count = self._token_count(data)
        if count > (self.events[-1][1] if self.events else 0):
            self.events.append((now_s, count))

    def _token_count(self, data: dict[str, object]) -> int:
        for value in (self._timings.get("predicted_n"), data.get("tokens_predicted")):
            if isinstance(value, int):
                return value
        return 0

    def completion(self, error: str | None = None) -> Completion:
        error = error or self._error
        return Completion(
            events=tuple(self.events),
            finish="error" if error else self._finish(),
            fresh_prompt_tokens=_whole(self._timings.get("prompt_n")),
            cached_prompt_tokens=_whole(self._timings.get("cache_n")),
            prompt_s=_seconds(self._timings.get("prompt_ms")),
            drafted_tokens=_whole(self._timings.get("draft_n")),
            accepted_tokens=_whole(self._timings.get("draft_n_accepted")),
            error=error,
            text="".join(self._texts),
        )

    def _finish(self) -> Literal["length", "stop", "time"]:
        if not self.finished:
            return "time"
        return "length" if self._stop_type == "limit" else "stop"


def parse_stream(lines: Iterable[str]) -> Completion:
    """A completion from the lines of a recorded stream, all received at once."""
    reader = _Reader()
    for line in lines:
        reader.take(line, 0.0)
    return reader.completion(None if reader.finished else "the stream ended without its final message")


def parse_next_token(data: object, follower: int) -> NextToken | None:
    """The probabilities in the answer to a completion of one token; None where it has none, or cannot be read."""
    try:
        (found,) = data["completion_probabilities"]  # type: ignore[index]
        logprobs = {int(row["id"]): float(row["logprob"]) for row in found["top_logprobs"]}
        chosen, logprob = int(found["id"]), float(found["logprob"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not logprobs or any(math.isnan(value) for value in logprobs.values()):
        return None
    kept = {token: min(value, 0.0) for token, value in logprobs.items() if value > _LEAST_LOGPROB}
    likeliest = sorted(kept, key=lambda token: -kept[token])
    certain = chosen == follower and logprob > _LEAST_LOGPROB
    return NextToken({token: kept[token] for token in likeliest}, min(logprob, 0.0) if certain else None)


def parse_metrics(text: str) -> dict[str, float]:
    """Values by name, without `llamacpp:`; lines with labels or without a number are passed over."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _METRIC.fullmatch(line.strip())
        if match is not None:
            found[match.group(1)] = float(match.group(2))
    return found


def _whole(value: float | None) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value >= 0 else None


def _seconds(value_ms: float | None) -> float | None:
    return value_ms / 1000 if isinstance(value_ms, (int, float)) and value_ms > 0 else None


def error_text(body: bytes) -> str:
    """The reason in an error's body: JSON of llama.cpp's or OpenAI's form, else its text."""
    try:
        data = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace").strip()[:300] or "an error without a text"
    inner = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(inner, dict):
        return str(inner.get("message", inner))[:300]
    return str(inner)[:300]
