"""Ollama: the user's own server, and private ones over the same models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.backends.buffers import parse_versions
from velollm.backends.llamahttp import LlamaHttp
from velollm.backends.ollama_find import (
    ServerProcess,
    blob_of,
    child_url,
    choose_process,
    find_binary,
    find_processes,
    find_url,
    is_local,
    models_dir_of,
    parse_host,
)
from velollm.backends.ollama_http import LoadedModel, OllamaApi, OllamaRefusalError, OllamaServer, parse_loaded
from velollm.backends.ollama_render import parse_version, render_settings, supported_knobs
from velollm.backends.ollama_store import default_model_dirs, find_ollama_blob
from velollm.backends.ollama_trial import private_ollama
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs

_SAMPLE = 3


class OllamaBackend(Backend):
    """The user's Ollama, or the one at ``url``. What it is, is read once and kept."""

    name = "ollama"

    def __init__(self, url: str | None = None) -> None:
        self._asked = url

    @cached_property
    def url(self) -> str:
        """Where it listens."""
        return self._asked or find_url(os.environ.get("OLLAMA_HOST"))[0]

    @cached_property
    def api(self) -> OllamaApi:
        """Its HTTP interface."""
        return OllamaApi(self.url)

    def at(self, url: str) -> Backend:
        return OllamaBackend(parse_host(url))

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

    def engine_version(self, log: str) -> str | None:
        return parse_versions(log)[0] if log else self.version

    def digest(self, name: str) -> str | None:
        """What tells the file of an installed model from others, as the server names it; None where it does not."""
        try:
            blob = blob_of(str(self.api.show(name).get("modelfile", "")))
        except VeloError:
            return None
        return blob.name if blob is not None and blob.name.startswith("sha256-") else None

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
        if not self.may_read(model):
            return (
                "the model's files cannot be read: join the server's group, run this one command with sudo, or let "
                f"`velollm optimize {model.name}` try a twin of it"
            )
        return None

    def may_read(self, model: ModelRef) -> bool:
        """May a private server, which runs as we do, read the model's files?"""
        directory = self.models_dir(model)
        return model.path is not None and directory is not None and os.access(directory, os.R_OK | os.X_OK)

    def needs_twin(self, model: ModelRef) -> bool:
        """Could all be tried here, but that the model's files may not be read?"""
        return is_local(self.url) and self.version is not None and self.binary is not None and not self.may_read(model)

    def forget(self) -> None:
        """The server was restarted: what was read of it is no longer true."""
        for name in ("version", "process"):
            self.__dict__.pop(name, None)

    def usual_model(self) -> str | None:
        """The model that is in memory now, else the newest that can complete; None where none is installed."""
        if self.version is None:
            return None
        if loaded := self.api.loaded():
            return str(loaded[0].get("name"))
        tags = [tag for tag in self.api.tags() if "completion" in tag.get("capabilities", ["completion"])]
        newest = max(tags, key=lambda tag: str(tag.get("modified_at")), default=None)
        return None if newest is None else str(newest.get("name"))

    def file_bytes(self, name: str) -> int | None:
        """Size of an installed model, as the server tells it."""
        names = (name, f"{name}:latest")
        sizes = (tag.get("size") for tag in self.api.tags() if tag.get("name") in names)
        return next((size for size in sizes if isinstance(size, int)), None)

    def holding(self) -> list[LoadedModel]:
        """What the user's server has in memory now."""
        return [] if self.version is None else [parse_loaded(model) for model in self.api.loaded()]

    def busy(self) -> int | None:
        """Answers that the server is at work on now; None where its engines cannot be asked."""
        process = choose_process(find_processes(), self.url)
        if process is None or "children" in process.unreadable:
            return None
        urls = [found for _, argv in process.children if (found := child_url(argv))]
        try:
            return sum(_busy_slots(url) for url in urls)
        except VeloError:
            return None

    def failing_models(
        self,
        model: ModelRef,
        settings: Sequence[Setting],
        log: Path,
        *,
        gpus: bool = False,
        time_is_up: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """The first other installed model that does not load with this environment, and why; largest ones first.

        ``gpus``: without a GPU it counts as not loaded. A model that does not load without the environment either is
        not the environment's fault. After the first one none is begun once ``time_is_up``.
        """
        directory = self.models_dir(model)
        if self.binary is None or directory is None or self.version is None:
            return None
        others = sorted(self.api.tags(), key=lambda tag: -int(tag.get("size", 0)))
        names = [str(tag["name"]) for tag in others if tag.get("name") not in (model.name, f"{model.name}:latest")]
        for number, name in enumerate(names[:_SAMPLE]):
            if number and time_is_up():
                return None
            reason = self._load_failure(name, directory, settings, log, gpus=gpus)
            if reason is not None and self._load_failure(name, directory, (), log, gpus=gpus) is None:
                return f"{name} ({reason})"
        return None

    def _load_failure(
        self, name: str, directory: Path, settings: Sequence[Setting], log: Path, *, gpus: bool
    ) -> str | None:
        """Why a model does not load on a private server with these settings; None where it does."""
        assert self.binary is not None
        try:
            with private_ollama(self.binary, name, directory, {}, settings, log=log, expected_gpus=gpus):
                return None
        except VeloError as error:
            return error.message

    @contextlib.contextmanager
    def user_server(self, model: str) -> Iterator[RunningServer]:
        """The user's own server as it runs, for a model with the parameters that are stored with it."""
        self.api.load(model, {})
        self.forget()
        process = self.process
        children = process.children if process is not None else ()
        url = next((found for _, argv in children if (found := child_url(argv))), None)
        yield OllamaServer(self.api, model, {}, child_url=url, pids=lambda: tuple(pid for pid, _ in children))

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
        with private_ollama(
            *(self.binary, model.name, directory, knobs, settings),
            log=log,
            port=port,
            expected_gpus=uses_gpus(facts),
        ) as server:
            yield server


def uses_gpus(facts: Facts) -> bool:
    """Is the user's own server known to compute on a GPU? That one is attached here is not enough."""
    activity = facts.server.activity if facts.server else None
    return any(library != "cpu" for library in (activity.compute if activity else None) or ())


def _busy_slots(url: str) -> int:
    engine = LlamaHttp(url)
    try:
        return engine.busy_slots()
    finally:
        engine.close()


backend = OllamaBackend()
