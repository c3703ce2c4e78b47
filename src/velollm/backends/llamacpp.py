"""llama.cpp's own `llama-server`, where it is on PATH."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.backends.buffers import parse_versions
from velollm.backends.child import Child
from velollm.backends.gguf_files import find_gguf
from velollm.backends.guard import guarded
from velollm.backends.llamaargs import (
    ARG_OF_KNOB,
    CONTEXT_ARG,
    DRAFT_TOKENS_ARG,
    NO_DEBUGGER,
    OPENMP_WAIT,
    OPTION_KNOBS,
    render_arg,
    render_flags,
    total_context_tokens,
)
from velollm.backends.llamabase import refuse_taken, serving
from velollm.facts import Facts
from velollm.knobs import DRAFT_KINDS, KNOBS, Knobs

_ENVIRONMENT = {**ARG_OF_KNOB, "openmp_wait": OPENMP_WAIT}
# From here on the engine says what it allocates (common/log.h, LOG_LEVEL_TRACE).
LOG_VERBOSITY = "4"
_LISTENING = re.compile(r"(?:server is|llama_server:) listening on (http://\S+)")


class LlamaCppBackend(Backend):
    """A `llama-server` of the user's, or the one at ``binary``.

    Its knobs are variables, so one environment file holds them; a few have none, and are only for trials.
    """

    name = "llamacpp"

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary

    @property
    def knobs(self) -> frozenset[str]:  # type: ignore[override]
        """All but what only a whole Ollama has; what has no variable only where it plays the part of another engine."""
        own = frozenset(KNOBS) - {"keep_alive_s", "max_loaded_models"}
        return own if self._binary else own - set(OPTION_KNOBS)

    @property
    def binary(self) -> str:
        """The program."""
        return self._binary or shutil.which("llama-server") or "llama-server"

    def engine_version(self, log: str) -> str | None:
        return parse_versions(log)[1]

    def missing(self) -> str | None:
        return None if self._binary or shutil.which("llama-server") else "no llama-server on PATH"

    def find_model(self, name: str) -> ModelRef:
        return find_gguf(name)

    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        defaults = self.default_knobs(facts)
        changed = {k: v for k, v in knobs.items() if k in self.knobs and v is not None and v != defaults.get(k)}
        settings = [
            Setting("environment", arg, render_arg(name, value), name)
            for name, value in changed.items()
            if (arg := _ENVIRONMENT.get(name)) is not None
        ]
        if changed.get("speculation") in DRAFT_KINDS and "speculation_tokens" in changed:
            settings.append(
                Setting("environment", DRAFT_TOKENS_ARG, str(changed["speculation_tokens"]), "speculation_tokens")
            )
        # The engine's context is for all slots together, so it changes with either.
        if {"context_tokens", "slots"} & changed.keys() and (total := total_context_tokens(knobs)):
            settings.append(Setting("environment", CONTEXT_ARG, str(total), "context_tokens"))
        return tuple(settings)

    @contextlib.contextmanager
    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> Iterator[RunningServer]:
        refuse_taken(port)
        argv = [self.binary, "--model", str(model.path), "--host", "127.0.0.1", "--port", str(port or free_port())]
        argv += ["--log-verbosity", LOG_VERBOSITY]
        child = Child(guarded([*argv, *render_flags(knobs)]), log=log, environ=_trial_environ(knobs), ready=_listening)
        with serving(child, model, progress) as server:
            yield server


def _listening(line: str) -> str | None:
    match = _LISTENING.search(line)
    return match.group(1) if match else None


def _trial_environ(knobs: Knobs) -> dict[str, str]:
    """Our environment without the user's engine settings, which would colour the trial."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_") and k != OPENMP_WAIT}
    kept |= NO_DEBUGGER
    wait = knobs.get("openmp_wait")
    return kept if wait is None else {**kept, OPENMP_WAIT: str(wait)}


def free_port() -> int:
    """A free loopback port, asked of the kernel."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


backend = LlamaCppBackend()
