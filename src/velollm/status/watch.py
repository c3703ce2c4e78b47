"""Look at a server at work, again and again.

Nothing pushes these figures: llama-server offers no stream of them, so its `/slots` and `/metrics` are asked at each
look, of each engine once. They are answered between two steps of decoding and take about a millisecond.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil

from velollm.backends.ollama_find import (
    ServerProcess,
    blob_of,
    child_url,
    choose_process,
    find_processes,
    is_local,
    parse_host,
)
from velollm.backends.ollama_http import OllamaApi
from velollm.backends.streaming import http_client
from velollm.errors import VeloError
from velollm.facts import Facts, GpuFacts, LoadedModelFacts
from velollm.probe.nvml import read_nvml
from velollm.probe.ollama_api import parse_loaded_facts
from velollm.probe.ollama_log_place import read_tail
from velollm.status.sample import (
    LogSpeeds,
    ModelSample,
    Sample,
    Slot,
    parse_buffers,
    parse_log_speeds,
    parse_metrics,
    parse_slots,
)

_FIRST_LOOK_BYTES = 2 * 1024 * 1024


class LogFollower:
    """The new text of a log file at each look: of the first look its end, then only what was added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place: int | None = None

    def read(self) -> str:
        """What was added since; empty where nothing was, or the file cannot be read."""
        if self._place is None:
            text = read_tail(self._path, _FIRST_LOOK_BYTES)
            self._place = self._size()
            return text or ""
        size = self._size()
        if size < self._place:  # it was begun anew
            self._place = 0
        if size == self._place:
            return ""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                data = file.read(min(size - self._place, _FIRST_LOOK_BYTES))
        except OSError:
            return ""
        self._place += len(data)
        return data.decode("utf-8", "replace")

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


class Watcher:
    """Looks at the server at ``url``; to be closed. ``facts`` tell what does not change: its log, its models' files."""

    def __init__(
        self,
        facts: Facts,
        *,
        clock: Callable[[], float] = time.monotonic,
        processes: Callable[[], Sequence[ServerProcess]] = find_processes,
        gpus: Callable[[], tuple[GpuFacts, ...] | None] = lambda: read_gpu_facts(),
    ) -> None:
        server = facts.server
        self.url = server.url if server and server.url else parse_host(os.environ.get("OLLAMA_HOST"))
        self._api = OllamaApi(self.url)
        self._clock, self._processes, self._gpus = clock, processes, gpus
        log = server.log if server else None
        self._log = LogFollower(Path(log)) if log and Path(log).is_file() else None
        self._engines: dict[str, httpx.Client] = {}
        self._buffers: dict[str, dict[str, dict[str, int]]] = {}
        self._speeds: LogSpeeds | None = None
        self._blobs: dict[str, str] = {}

    def close(self) -> None:
        self._api.close()
        for client in self._engines.values():
            client.close()

    def look(self) -> Sample:
        """What the server does now."""
        if self._log is not None and (text := self._log.read()):
            self._buffers.update(parse_buffers(text))
            self._speeds = parse_log_speeds(text) or self._speeds
        try:
            loaded = [parse_loaded_facts(entry) for entry in self._api.loaded()]
        except VeloError:
            return Sample(self._clock(), reachable=False, gpus=self._gpus())
        engines = self._engine_processes() if loaded and is_local(self.url) else []
        models = tuple(self._model(model, engines, alone=len(loaded) == 1) for model in loaded)
        return Sample(self._clock(), reachable=True, models=models, gpus=self._gpus())

    def _engine_processes(self) -> list[tuple[int, tuple[str, ...]]]:
        process = choose_process(self._processes(), self.url)
        return [(pid, argv) for pid, argv in (process.children if process else ()) if child_url(argv) is not None]

    def _model(
        self, model: LoadedModelFacts, engines: Sequence[tuple[int, tuple[str, ...]]], *, alone: bool
    ) -> ModelSample:
        blob = self._blob(model.name)
        holders = [(pid, argv) for pid, argv in engines if blob is not None and blob in argv]
        if not holders and alone and len(engines) == 1:
            holders = list(engines)
        slots: tuple[Slot, ...] | None = None
        counters, resident = None, None
        if len(holders) == 1:
            pid, argv = holders[0]
            slots, counters = self._ask_engine(child_url(argv))
            resident = _resident_bytes(pid)
        return ModelSample(
            name=model.name,
            size_bytes=model.size_bytes,
            gpu_bytes=model.gpu_bytes,
            context_tokens=model.context_tokens,
            slots=slots,
            counters=counters,
            memory=self._buffers.get(blob or "", {}),
            resident_bytes=resident,
            # A log does not name the model of an answer.
            log=self._speeds if alone else None,
        )

    def _blob(self, name: str) -> str | None:
        """The file of a model, asked once."""
        if name not in self._blobs:
            try:
                blob = blob_of(str(self._api.show(name).get("modelfile", "")))
            except VeloError:
                return None
            self._blobs[name] = str(blob or "")
        return self._blobs[name] or None

    def _ask_engine(self, url: str | None) -> tuple[tuple[Slot, ...] | None, dict[str, float] | None]:
        if url is None:
            return None, None
        if url not in self._engines:
            self._engines[url] = http_client(url)
        client = self._engines[url]
        try:
            slots, metrics = client.get("/slots"), client.get("/metrics")
            found = parse_slots(slots.json()) if slots.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None, None
        return found, parse_metrics(metrics.text) if metrics.status_code == 200 else None


def _resident_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def read_gpu_facts() -> tuple[GpuFacts, ...] | None:
    """NVIDIA's GPUs as they are now, through NVML; None where there is no such library or driver."""
    readings = read_nvml()
    return None if readings is None else tuple(reading.facts for reading in readings)
