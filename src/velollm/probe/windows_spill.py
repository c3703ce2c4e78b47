"""GPU memory of an engine that Windows keeps in main memory: the counter `GPU Process Memory\\Shared Usage`."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Collection

from velollm.facts import GpuFacts
from velollm.probe.source import Source

_COUNTER = "\\GPU Process Memory(*)\\Shared Usage"
_INSTANCE = re.compile(r"GPU Process Memory\(pid_(\d{1,9})_luid_\w+\)\\Shared Usage$", re.IGNORECASE)
_PROGRAMS = frozenset({"ollama.exe", "llama-server.exe", "ollama_llama_server.exe"})


def add_spill(source: Source, gpus: tuple[GpuFacts, ...]) -> tuple[GpuFacts, ...]:
    """The GPUs with what of the engines' memory has spilled; only where there is one card that it can be of."""
    cards = [gpu for gpu in gpus if gpu.integrated is False]
    if sys.platform != "win32" or not source.live or len(cards) != 1:
        return gpus
    spilled = parse_shared_usage(source.run(["typeperf", _COUNTER, "-sc", "1"]) or "", _engine_pids())
    return tuple(gpu.model_copy(update={"spilled_bytes": spilled}) if gpu in cards else gpu for gpu in gpus)


def parse_shared_usage(text: str, pids: Collection[int]) -> int | None:
    """Bytes that these processes have in shared GPU memory, of the table that `typeperf` prints; None: not listed."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 1]
    if len(rows) < 2:
        return None
    found = None
    for name, value in zip(rows[0], rows[1], strict=False):
        match = _INSTANCE.search(name)
        if match and int(match.group(1)) in pids and re.fullmatch(r"\d{1,15}(?:\.\d{1,9})?", value.strip()):
            found = (found or 0) + round(float(value))
    return found


def _engine_pids() -> set[int]:
    import psutil

    found = psutil.process_iter(["name"])
    return {process.pid for process in found if (process.info["name"] or "").lower() in _PROGRAMS}
