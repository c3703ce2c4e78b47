"""Ollama: the user's own server, and private ones over the same models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.backends.ollama_find import (
    ServerProcess,
    blob_of,
    choose_process,
    find_binary,
    find_processes,
    is_local,
    models_dir_of,
    parse_host,
)
from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError
from velollm.backends.ollama_render import parse_version, render_settings, supported_knobs
from velollm.backends.ollama_store import default_model_dirs, find_ollama_blob
from velollm.backends.ollama_trial import private_ollama
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs


class OllamaBackend(Backend):
    """The Ollama at OLLAMA_HOST. What it is, is read once and kept."""

    name = "ollama"

    def __init__(self) -> None:
        self.url = parse_host(os.environ.get("OLLAMA_HOST"))
        self.api = OllamaApi(self.url)

    @cached_property
    def version(self) -> str | None:
        """Version that the server tells; None where none answers."""
        try:
            return self.api.version()
        except VeloError:
            return None

    @cached_property
    def process(self) -> ServerProcess | None:
        """The server's process, where it is on this machine."""
        return choose_process(find_processes(), self.url) if self.version is not None else None

    @property
    def knobs(self) -> frozenset[str]:  # type: ignore[override]
        return supported_knobs(parse_version(self.version or "")) & frozenset(KNOBS)

    @cached_property
    def binary(self) -> str | None:
        """The program to start private servers with."""
        return find_binary(self.process)

    def missing(self) -> str | None:
        if self.version is None and self.binary is None:
            return "no Ollama found here: install it from ollama.com, or set OLLAMA_HOST to where one listens"
        return None

    def find_model(self, name: str) -> ModelRef:
        if name.endswith(".gguf") and Path(name).is_file():
            raise VeloError(f"{name} is a file, not a model of Ollama", "add --backend embedded, or `ollama create` it")
        if self.version is None:
            blob = next(
                (b for d in default_model_dirs(os.environ, Path.home()) if (b := find_ollama_blob(name, d))), None
            )
            if blob is None:
                raise VeloError(f"there is no model '{name}'", "start Ollama, or see `ollama list`")
            return ModelRef(name, blob)
        try:
            shown = self.api.show(name)
        except OllamaRefusalError as error:
            raise VeloError(f"Ollama has no model '{name}'", "`ollama list` names the installed ones") from error
        blob = blob_of(str(shown.get("modelfile", "")))
        return ModelRef(name, blob if blob is not None and os.access(blob, os.R_OK) else None)

    def models_dir(self, model: ModelRef) -> Path | None:
        """The directory that holds the model's files, where it is on this machine."""
        if model.path is not None:
            return model.path.parent.parent
        if not is_local(self.url) or self.version is None:
            return None
        return models_dir_of(str(self.api.show(model.name).get("modelfile", "")))

    def untriable(self, model: ModelRef) -> str | None:
        """Why no private trial is possible here; None where it is."""
        if not is_local(self.url):
            return f"the server at {self.url} is on another machine, so no private trial server can be started there"
        if self.binary is None:
            return "the ollama program is not on this machine (a container?), so no private trial server can be started"
        directory = self.models_dir(model)
        if directory is None or model.path is None or not os.access(directory, os.R_OK | os.X_OK):
            return "the model's files cannot be read: join the server's group, or run this one command with sudo"
        return None

    def default_knobs(self, facts: Facts) -> Knobs:
        return {name: value for name, value in ollama_default_knobs(facts).items() if name in self.knobs}

    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        return render_settings(knobs, self.default_knobs(facts), parse_version(self.version or ""))

    @contextlib.contextmanager
    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> Iterator[RunningServer]:
        if reason := self.untriable(model):
            raise VeloError(reason, "`--dry-run` shows the plan")
        if progress:
            progress(f"loading {model.name}")
        directory = self.models_dir(model)
        assert self.binary is not None
        assert directory is not None
        settings = self.render(knobs, facts)
        with private_ollama(self.binary, model.name, directory, knobs, settings, log=log, port=port) as server:
            yield server


backend = OllamaBackend()
