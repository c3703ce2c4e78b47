"""One streamed answer over HTTP: send, time every line, stop at a limit. What the lines mean is the reader's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import httpx

from velollm.backends.base import Completion, RunningServer
from velollm.backends.wire import Exchange, WireError, WireTimeoutError, lines_of

CONNECT_S = 5.0


@dataclass(frozen=True)
class ReadLimits:
    """When to stop reading: ``deadline_s`` after the request, or ``decode_limit_s`` after the first token."""

    deadline_s: float
    decode_limit_s: float | None = None


class StreamReader(Protocol):
    """Collects the lines of one answer."""

    @property
    def events(self) -> list[tuple[float, int]]:
        """(seconds since the request was sent, tokens so far)."""

    @property
    def finished(self) -> bool:
        """Has the last message come, or an error?"""

    def take(self, line: str, now_s: float) -> None:
        """One line, received ``now_s`` seconds after the request was sent."""

    def completion(self, error: str | None = None) -> Completion:
        """What was collected; ``error`` is what ended it."""


@dataclass(frozen=True)
class Question:
    """What `RunningServer.complete` is asked for, but for when to stop reading."""

    prompt: str
    max_tokens: int
    seed: int
    ignore_eos: bool
    schema: Mapping[str, object] | None


class StreamingServer(RunningServer):
    """A server that streams its answers over HTTP. Engines differ in what they are sent, and in what they send."""

    _client: httpx.Client
    _clock: Callable[[], float]
    _path: str
    """Where it is asked."""

    @abstractmethod
    def _body(self, question: Question) -> dict[str, object]:
        """The request, in the engine's own words."""

    @abstractmethod
    def _reader(self) -> StreamReader:
        """A reader of one answer."""

    @abstractmethod
    def _refusal(self, body: bytes) -> str:
        """The reason in the body of a refused request."""

    def _broken(self, error: httpx.HTTPError, reader: StreamReader) -> Completion:
        """What a connection that broke leaves: what was read until then, as a failure."""
        return reader.completion(f"the connection broke: {error or type(error).__name__}")

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
        body = self._body(Question(prompt, max_tokens, seed, ignore_eos, schema))
        reader, limits = self._reader(), ReadLimits(deadline_s, decode_limit_s)
        try:
            return read_answer(self._client, self._path, body, reader, limits, clock=self._clock, refusal=self._refusal)
        except httpx.HTTPError as error:
            return self._broken(error, reader)


def http_client(url: str, *, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """A client for one engine.

    Its address is explicit: a proxy from the environment must never see these requests. Reading the system's
    certificates takes longer than most calls, and plain HTTP has no use for them.
    """
    return httpx.Client(
        base_url=url,
        headers=headers,
        trust_env=False,
        verify=url.startswith("https:"),
        timeout=CONNECT_S,
        limits=httpx.Limits(max_connections=None),
    )


def share_tokens(events: Sequence[tuple[float, int]], count: int | None) -> tuple[tuple[float, int], ...]:
    """Events with tokens rather than chunks: a token without text (half a character) makes no chunk.

    ``count`` is the server's own, where it tells one; the chunks share the difference evenly.
    """
    chunks = len(events)
    if not count or not chunks or count == chunks:
        return tuple(events)
    return tuple((at, max(1, round(number * count / chunks))) for at, number in events)


def read_answer(
    client: httpx.Client,
    path: str,
    body: Mapping[str, object],
    reader: StreamReader,
    limits: ReadLimits,
    *,
    clock: Callable[[], float],
    refusal: Callable[[bytes], str],
) -> Completion:
    """Send one request and read its stream; ``refusal`` turns the body of a refused one into its reason.

    A stream that just ends (the engine's process died, a proxy gave up) is a failure, not a short answer.

    Raises:
        httpx.HTTPError: the connection broke; whatever the reader took is still in it.
    """
    if client.base_url.scheme == "http":
        return _read_wire(client, path, body, reader, limits, clock=clock, refusal=refusal)
    sent = clock()
    try:
        timeout = httpx.Timeout(CONNECT_S, read=limits.deadline_s)
        with client.stream("POST", path, json=dict(body), timeout=timeout) as reply:
            if reply.status_code != 200:
                return Completion((), "error", error=refusal(reply.read()))
            for line in reply.iter_lines():
                now = clock() - sent
                reader.take(line, now)
                if reader.finished or now > limits.deadline_s or _decoded_enough(reader, now, limits):
                    return reader.completion()
    except httpx.ReadTimeout:
        return reader.completion(f"no token within {limits.deadline_s:.0f} s")
    return reader.completion("the stream ended without its final message")


def _read_wire(
    client: httpx.Client,
    path: str,
    body: Mapping[str, object],
    reader: StreamReader,
    limits: ReadLimits,
    *,
    clock: Callable[[], float],
    refusal: Callable[[bytes], str],
) -> Completion:
    """The same without encryption: over a socket of our own, whose times are better."""
    keys = {name: value for name, value in client.headers.items() if name == "authorization"}
    url = f"{str(client.base_url).rstrip('/')}/{path.lstrip('/')}"
    try:
        exchange = Exchange(url, body, keys, connect_s=CONNECT_S, clock=clock)
    except WireError as error:
        raise httpx.ConnectError(str(error)) from error
    with closing(exchange):
        refused: list[str] = []
        try:
            for line, now_s in lines_of(exchange.pieces(limits.deadline_s)):
                if exchange.status != 200:
                    refused.append(line)
                    continue
                reader.take(line, now_s)
                if reader.finished or now_s > limits.deadline_s or _decoded_enough(reader, now_s, limits):
                    _end_when_read(reader, exchange.read_s)
                    return reader.completion()
        except WireTimeoutError:
            return reader.completion(f"no token within {limits.deadline_s:.0f} s")
        except WireError as error:
            raise httpx.ReadError(str(error)) from error
    if exchange.status != 200:
        return Completion((), "error", error=refusal("\n".join(refused).encode()))
    return reader.completion("the stream ended without its final message")


def _end_when_read(reader: StreamReader, read_s: float) -> None:
    """An answer that came whole in one piece has one time for all of its tokens: it ended, at the latest, when it was
    read, and that is all that is known of how long it took.
    """
    events = reader.events
    if len(events) > 1 and events[0][0] == events[-1][0] < read_s:
        events[-1] = (read_s, events[-1][1])


def _decoded_enough(reader: StreamReader, now_s: float, limits: ReadLimits) -> bool:
    limit_s, events = limits.decode_limit_s, reader.events
    return limit_s is not None and bool(events) and now_s - events[0][0] >= limit_s
