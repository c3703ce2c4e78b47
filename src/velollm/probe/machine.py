"""All facts of a machine: of this one, or of a captured one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velollm.facts import Facts
from velollm.probe.capture import read_capture
from velollm.probe.gpus import GpuProbe, probe_gpus
from velollm.probe.host import HostProbe, probe_host
from velollm.probe.live import read_devices, read_environment, read_libraries, sample_load
from velollm.probe.ollama import probe_ollama
from velollm.probe.server import parse_server_log, server_facts
from velollm.probe.source import LiveSource, Source


def probe_machine(source: Source | None = None, *, sample_s: float = 0.5) -> Facts:
    """Facts of this machine; ``sample_s`` is how long its load is sampled, in seconds (0: not at all).

    The user's server is looked at only where no other ``source`` is given: its processes are this machine's.
    """
    server = probe_ollama() if source is None else None
    source = source or LiveSource()
    values, sources = _combine(probe_host(source), probe_gpus(source))
    if source.live:
        values.update(
            libraries=read_libraries(source) if values.get("os") == "linux" else {},
            devices=read_devices(source) if values.get("os") == "linux" else {},
            environment=read_environment(),
        )
        sources.update(environment="environment of this process")
    if sample_s > 0:
        values["load"] = sample_load(sample_s, source=source)
        place = "/proc/stat" if source.read("/proc/stat") is not None else "psutil"
        sources.update({"load.busy_cores_now": place, "load.busy_per_cpu": place})
        sources.update({"load.load_1m": "/proc/loadavg", "load.load_15m": "/proc/loadavg"})
    if server is not None:
        values["server"] = server.facts
        sources.update(server.sources)
    return Facts(**values, sources=sources)


def probe_capture(directory: Path) -> Facts:
    """Facts of a captured machine: a folder of texts named after their paths and commands.

    Raises `VeloError` where the folder cannot be read or holds no text of a machine.
    """
    source = read_capture(directory)
    values, sources = _combine(probe_host(source, source.logs), probe_gpus(source))
    if source.logs:
        values["logs"] = {name: parse_server_log(text) for name, text in source.logs.items()}
        values["server"] = server_facts(source.logs)
        sources.update({f"logs.{name}": name for name in source.logs})
    return Facts(**values, sources=sources)


def _combine(host: HostProbe, gpus: GpuProbe) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {**host.values, "gpus": gpus.gpus, "gpus_attached": gpus.attached}
    shared = [gpu.unified_memory for gpu in gpus.gpus or ()]
    if "unified_memory" not in values and shared and all(kind is not None for kind in shared):
        values["unified_memory"] = all(shared)
    return values, {**host.sources, **gpus.sources}
