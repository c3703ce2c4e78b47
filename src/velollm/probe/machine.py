"""All facts of a machine: of this one, or of a captured one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velollm.facts import Facts, ServerFacts
from velollm.probe.capture import read_capture
from velollm.probe.gpus import GpuProbe, probe_gpus
from velollm.probe.host import HostProbe, probe_host
from velollm.probe.kernel import read_kernel
from velollm.probe.live import read_devices, read_environment, read_libraries, sample_load
from velollm.probe.logline import parse_server_environment
from velollm.probe.ollama import probe_ollama, tuning_environment
from velollm.probe.ollama_activity import parse_activity
from velollm.probe.server import parse_server_log, server_facts
from velollm.probe.source import LiveSource, Source
from velollm.probe.windows_spill import add_spill


def probe_machine(source: Source | None = None, *, sample_s: float = 0.5) -> Facts:
    """Facts of this machine; ``sample_s`` is how long its load is sampled, in seconds (0: not at all).

    The user's server is looked at only where no other ``source`` is given: its processes are this machine's.
    """
    server = probe_ollama() if source is None else None
    source = source or LiveSource()
    values, sources = _combine(probe_host(source), probe_gpus(source))
    values["gpus"] = add_spill(source, values["gpus"]) if values["gpus"] else values["gpus"]
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
    _add_kernel(source, values, sources)
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
    _add_kernel(source, values, sources)
    if source.logs:
        values["logs"] = {name: parse_server_log(text) for name, text in source.logs.items()}
        values["server"] = _logged_server(source.logs)
        sources.update({f"logs.{name}": name for name in source.logs})
        sources.update(dict.fromkeys(("server.activity", "server.logged_environment"), ", ".join(source.logs)))
    return Facts(**values, sources=sources)


def _logged_server(logs: Mapping[str, str]) -> ServerFacts | None:
    """The one server of these logs; its work too where there is one log alone."""
    server = server_facts(dict(logs))
    if server is None or len(logs) != 1 or server.engine != "ollama":
        return server
    text = next(iter(logs.values()))
    logged = tuning_environment(parse_server_environment(text) or {}) or None
    return server.model_copy(update={"activity": parse_activity(text), "logged_environment": logged})


def _add_kernel(source: Source, values: dict[str, Any], sources: dict[str, str]) -> None:
    if values.get("os") in ("linux", None) and (kernel := read_kernel(source)) is not None:
        values["kernel"] = kernel
        sources.update({"kernel.resumes": "kernel log", "kernel.gpu_errors": "kernel log"})
        sources["kernel.numa_balancing"] = "/proc/sys/kernel/numa_balancing"


def _combine(host: HostProbe, gpus: GpuProbe) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {**host.values, "gpus": gpus.gpus, "gpus_attached": gpus.attached}
    shared = [gpu.unified_memory for gpu in gpus.gpus or ()]
    if "unified_memory" not in values and shared and all(kind is not None for kind in shared):
        values["unified_memory"] = all(shared)
    return values, {**host.sources, **gpus.sources}
