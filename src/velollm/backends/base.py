"""What a backend, a running server and an answer are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.errors import UsageError
from velollm.facts import Facts
from velollm.knobs import Knobs

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModelRef:
    """A model as the user named it, and the GGUF file that it is (None where it cannot be reached)."""

    name: str
    path: Path | None


@dataclass(frozen=True)
class Setting:
    """One knob in a backend's own words: ``key`` = ``value`` at a place of kind ``target``.

    Kinds: ``environment`` (a server's environment variables), ``engine`` (our own engine settings,
    per model), ``model`` (parameters stored with an Ollama model), ``config`` (options in llama.cpp's own
    ``config.ini``, for every model).
    """

    target: Literal["environment", "engine", "model", "config"]
    key: str
    value: str
    knob: str


@dataclass(frozen=True)
class Completion:
    """One streamed answer as the client saw it.

    ``events`` are (seconds since the request was sent, tokens received so far); times come from the
    client's monotonic clock. ``fresh_prompt_tokens`` were computed, ``cached_prompt_tokens`` were not
    (None: the engine does not say). ``prompt_s`` is the engine's own prefill time. ``finish`` is ``length``
    (token count reached), ``stop`` (the model ended), ``time`` (we stopped reading at the time limit),
    ``error``. ``answer_ttft_s`` is the time to the first token of the answer, after any thinking.
    """

    events: tuple[tuple[float, int], ...]
    finish: Literal["length", "stop", "time", "error"]
    fresh_prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    prompt_s: float | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    answer_ttft_s: float | None = None
    error: str | None = None
    text: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Seconds from sending the request to the first token."""
        return self.events[0][0] if self.events else None


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done since it started: prompt tokens computed (cached ones are not), and drafts."""

    prompt_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class NextToken:
    """What a model expects to follow, before any sampling.

    ``logprobs``: natural logarithms of the probabilities of the likeliest tokens by their ids, likeliest first.
    ``followed_logprob``: that of the token that does follow, however unlikely; None where the engine does not tell.
    """

    logprobs: Mapping[int, float]
    followed_logprob: float | None


class RunningServer(ABC):
    """A server that answers on loopback, with one model loaded or loadable."""

    url: str

    @abstractmethod
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
        """Stream one answer, sampled at temperature 1 with ``seed``.

        With a JSON ``schema`` the answer keeps to it, where the engine can, and may end by itself.
        Reading stops after ``max_tokens``, or ``decode_limit_s`` after the first token. Safe to call from
        several threads. Raises `VeloError` when the server is gone or gives nothing until ``deadline_s``.
        """

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens of a text by this model's own tokenizer."""

    @abstractmethod
    def wait(self) -> int | None:
        """Block until the server ends by itself; its exit status, None where it is not ours to know."""

    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """Processes of the server, for memory readings; empty where they are not ours to see."""

    def counters(self) -> EngineCounters | None:
        """The engine's own counters; None where an answer tells all of it, or they are out of reach."""
        return None

    def buffers(self) -> dict[str, int]:
        """Bytes that the engine's log says it allocated, by kind; empty where there is no such log."""
        return {}

    def greedy_text(self, prompt: str, *, max_tokens: int, deadline_s: float) -> str | None:
        """The answer with always the likeliest token; None where it failed or cannot be asked for."""
        return None

    def token_ids(self, text: str) -> tuple[int, ...] | None:
        """Tokens of a text as a prompt has them, with the one that begins it; None where they are not told."""
        return None

    def next_probabilities(
        self, tokens: Sequence[int], count: int, *, follower: int, deadline_s: float
    ) -> NextToken | None:
        """The ``count`` likeliest tokens after ``tokens``, and how likely ``follower`` is; None where nobody tells.

        What a longer prompt shares with the one before it is not computed again. Raises `VeloError` where the engine
        refuses the prompt or is gone.
        """
        return None

    def load_s(self) -> float | None:
        """Seconds that the engine says it took to load the model for the last answer; None where it does not say."""
        return None

    def unload(self) -> bool:
        """Take the model out of memory, so that the next request loads it; False where that cannot be done here."""
        return False


class Backend(ABC):
    """One engine: which knobs it has, what it would do by itself, and how to run it privately."""

    name: str
    knobs: frozenset[str]

    def at(self, url: str) -> Backend:
        """The same backend for the server at this address.

        Raises:
            UsageError: it starts its own servers, so there is no address to give.
        """
        raise UsageError(f"the backend '{self.name}' takes no --url", "--url goes with --backend ollama or openai")

    def engine_version(self, log: str) -> str | None:
        """The version of the engine that wrote this log, as its makers count them; None where it does not tell.

        Without a log: of the server as it runs.
        """
        return None

    @abstractmethod
    def missing(self) -> str | None:
        """Why this backend cannot be used here, in one line; None where it can."""

    @abstractmethod
    def find_model(self, name: str) -> ModelRef:
        """The model of that name. Raises `VeloError` where there is none."""

    def default_knobs(self, facts: Facts) -> Knobs:
        """What would be chosen here without us: Ollama's choice, of the knobs that there are."""
        return {name: value for name, value in ollama_default_knobs(facts).items() if name in self.knobs}

    @abstractmethod
    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        """Knobs in this backend's own settings; a knob at the engine's default needs none."""

    @abstractmethod
    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> AbstractContextManager[RunningServer]:
        """Start a private server with these knobs; leaving the context ends its whole process group.

        ``port`` 0 lets the kernel choose. Raises `VeloError`, with the engine's own reason, when it does not start.
        """


def iter_backends() -> Iterator[Backend]:
    """One of each backend, in name order."""
    from velollm.discover import collect

    yield from collect("velollm.backends", "backend", Backend)  # type: ignore[type-abstract]
