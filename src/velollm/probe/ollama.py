"""The user's Ollama server: everything that VeloLLM learns of it, and where each value was read."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from velollm.backends.ollama_defaults import DEFAULT_KEEP_ALIVE_S
from velollm.backends.ollama_find import (
    ServerProcess,
    address_of,
    choose_process,
    find_processes,
    find_url,
    is_listening,
    is_local,
)
from velollm.backends.ollama_render import LLAMA_SERVER_ERA, parse_keep_alive, parse_version
from velollm.config import user_paths
from velollm.facts import LoadedModelFacts, ServerFacts, UnreadFacts
from velollm.probe.live import read_environment
from velollm.probe.logline import parse_server_environment
from velollm.probe.ollama_activity import name_models, parse_activity
from velollm.probe.ollama_api import ApiReading, read_api, read_blob_names
from velollm.probe.ollama_listen import other_clients, read_listening
from velollm.probe.ollama_log_place import ServerLog, read_server_log
from velollm.probe.ollama_manage import Service, is_boxed, parse_unit, read_service
from velollm.probe.server import server_facts
from velollm.probe.serverrun import parse_flags
from velollm.probe.source import LiveSource, Source
from velollm.probe.storage import read_storage
from velollm.targets.envfile import parse_env
from velollm.targets.ollama_model import BEFORE_SUFFIX

_NAMES = re.compile(r"(?:OLLAMA|LLAMA_ARG|OMP|GOMP|KMP)_\w+|LLAMA_API_KEY|\w*_VISIBLE_DEVICES")
_UNIT = "ollama.service"  # of Ollama's own installer
_RUNNING = ("context_tokens", "slots", "batch", "ubatch", "threads", "gpu_layers", "flash_attention", "kv_type")


@dataclass(frozen=True)
class Machine:
    """Where the probe looks; a test can be another machine."""

    source: Source = field(default_factory=LiveSource)
    proc: Path = Path("/proc")
    platform: str = sys.platform
    home: Path = field(default_factory=Path.home)
    processes: Callable[[], Sequence[ServerProcess]] = find_processes
    parent: Callable[[int], int | None] = lambda pid: _parent(pid)
    which: Callable[[str], str | None] = shutil.which
    answers: Callable[[str], bool] = is_listening
    api: Callable[[str], ApiReading | None] = read_api
    listening: Callable[[int], tuple[str, ...] | None] = read_listening


@dataclass(frozen=True)
class ServerProbe:
    """A server's facts, and their sources by path (``server.version``)."""

    facts: ServerFacts
    sources: dict[str, str]


class _Collected:
    """Values with their sources, and what could not be read."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"engine": "ollama"}
        self.sources: dict[str, str] = {}
        self.unreadable: list[UnreadFacts] = []
        self.engines: list[tuple[str, ...]] = []

    def add(self, name: str, value: object, source: str) -> None:
        """Keep a value that is known; the first source wins."""
        if value is not None and self.values.get(name) is None:
            self.values[name] = value
            self.sources[f"server.{name}"] = source

    def missing(self, what: str, why: str, mend: str) -> None:
        self.unreadable.append(UnreadFacts(what=what, why=why, help=mend))


def probe_ollama(environ: Mapping[str, str] | None = None, machine: Machine | None = None) -> ServerProbe | None:
    """What is known of the Ollama server at OLLAMA_HOST; None where there is no sign of Ollama at all.

    Of a server on another machine only its API tells. Nothing is started, loaded or changed.
    """
    env = os.environ if environ is None else environ
    machine = machine or Machine()
    url, place = find_url(env.get("OLLAMA_HOST"), machine.answers, machine.processes)
    found = _Collected()
    found.add("url", url, place)
    found.add("remote", not is_local(url), place)
    api = machine.api(url) if machine.answers(url) else None
    found.add("reachable", api is not None, f"{url}/api/version")
    if is_local(url):
        signs = _add_local(found, env, url, api, machine)
    else:
        found.missing("process", f"{url} is on another machine", "run velollm there")
        signs = True
    if api is None and not signs:
        return None
    if api is not None:
        _add_api(found, api, machine)
    _add_generation(found)
    facts = ServerFacts(**found.values, unreadable=tuple(found.unreadable))
    return ServerProbe(facts, found.sources)


def _add_local(found: _Collected, env: Mapping[str, str], url: str, api: ApiReading | None, machine: Machine) -> bool:
    """What this machine tells; False where it shows no sign of Ollama."""
    processes = list(machine.processes())
    process = choose_process(processes, url)
    others = [p for p in processes if process is None or p.pid != process.pid]
    found.add("elsewhere", tuple(address_of(p) for p in others if p.port) or None, "process list")
    if process is not None:
        _add_process(found, process)
    elif api is not None:
        why = "it answers, but its process cannot be seen: in a container, behind a tunnel, or hidden from this user"
        found.missing("process", why, "sudo velollm doctor")
    binary = process.exe if process is not None and process.exe else machine.which("ollama")
    found.add("binary", binary, "process list" if process is not None and process.exe else "PATH")
    service = _add_manager(found, process, machine)
    _add_environment_file(found, machine)
    if api is not None:
        port = urlsplit(url).port or 0
        found.add("listens", machine.listening(port), "listening sockets")
        pid = process.pid if process else None
        # `velollm run` passes the server's lines on to its own standard error.
        writer = machine.parent(pid) if pid is not None and found.values.get("managed") == "velollm run" else None
        log = read_server_log(machine.source, url, pid, service, env, machine.home, machine.proc, writer=writer)
        if process is not None:
            _add_children(found, process)
        _add_log(found, log)
    _add_keep_alive(found)
    return bool(process or others or service or binary or api)


def _add_process(found: _Collected, process: ServerProcess) -> None:
    place = f"/proc/{process.pid}"
    found.add("pid", process.pid, "process list")
    found.add("user", process.user, f"{place}/status")
    found.add("argv", process.argv, f"{place}/cmdline")
    if process.environ is not None:
        found.add("environment", tuning_environment(process.environ), f"{place}/environ")
        return
    user = process.user or "another user"
    why = f"process {process.pid} runs as {user}: only {user} and root may read its environment"
    found.missing("environment", why, "sudo velollm doctor")


def tuning_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that tune a server or choose its GPUs; values of secrets are hidden."""
    return read_environment({k: v for k, v in environ.items() if _NAMES.fullmatch(k)})


def _add_manager(found: _Collected, process: ServerProcess | None, machine: Machine) -> Service | None:
    source = machine.source
    own, cgroup = source.read("/proc/self/cgroup") or "", ""
    if process is not None:
        cgroup = source.read(f"/proc/{process.pid}/cgroup") or ""
    service = _service(process, cgroup, machine)
    if service is not None:
        _add_service(found, service)
        found.add("managed", "systemd", f"systemctl show {service.unit}")
        return service
    if process is None:
        return None
    state_file = user_paths().runner_state
    if _is_run(state_file, process.pid):
        found.add("managed", "velollm run", str(state_file))
    elif is_boxed(cgroup, own):
        found.add("managed", "container", f"/proc/{process.pid}/cgroup")
    elif "Ollama.app" in (process.exe or "") or (machine.platform == "win32" and "Ollama" in (process.exe or "")):
        found.add("managed", "app", "process list")
    elif machine.platform == "darwin" and machine.parent(process.pid) == 1:
        found.add("managed", "launchd", "process list")
    else:
        found.add("managed", "by hand", "process list")
    return None


def _service(process: ServerProcess | None, cgroup: str, machine: Machine) -> Service | None:
    """The unit that the process is the main one of; without a process the unit that Ollama's installer makes."""
    if machine.platform != "linux" or not machine.source.glob("/run/systemd/system"):
        return None
    if process is None:
        return read_service(machine.source, _UNIT)
    unit, user_unit = parse_unit(cgroup) or (_UNIT, False)
    service = read_service(machine.source, unit, user_unit=user_unit)
    return service if service is not None and service.main_pid == process.pid else None


def _add_service(found: _Collected, service: Service) -> None:
    place = f"systemctl show {service.unit}"
    found.add("unit", service.unit, place)
    found.add("unit_state", service.state, place)
    found.add("user_unit", service.user_unit, place)
    found.add("needs_reload", service.needs_reload, place)
    found.add("configured", {p: tuning_environment(v) for p, v in service.configured.items()} or None, place)
    for path in service.unreadable_files:
        found.missing("configured", f"{path} may not be read", f"sudo cat {path}")


def _add_environment_file(found: _Collected, machine: Machine) -> None:
    """What `velollm run -- ollama serve` would set, where the server is run by it."""
    if found.values.get("managed") != "velollm run":
        return
    path = user_paths().ollama_env
    text = machine.source.read(str(path)) or ""
    if variables := tuning_environment(parse_env(text)):
        found.add("configured", {str(path): variables}, str(path))


def _is_run(state_file: Path, pid: int) -> bool:
    if not state_file.is_file():
        return False
    from velollm.backends.ollama_run import find_runner

    return find_runner(state_file, pid) is not None


def _parent(pid: int) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None


def _add_log(found: _Collected, log: ServerLog) -> None:
    found.add("log", log.place, log.found_by)
    if log.unread is not None:
        found.unreadable.append(log.unread)
    if log.text is None:
        return
    place = log.place or "server log"
    activity = parse_activity(log.text)
    if activity.clients:
        activity = activity.model_copy(update={"clients": other_clients(activity.clients)})
    found.add("activity", activity, place)
    found.add("logged_environment", tuning_environment(parse_server_environment(log.text) or {}) or None, place)
    running = server_facts({place: log.text})
    for name, value in (running.model_dump(exclude_defaults=True) if running else {}).items():
        found.add(name, value, place)


def _add_children(found: _Collected, process: ServerProcess) -> None:
    """What runs now, from the command line of the engine below the server, where there is one alone."""
    engines = [(pid, argv) for pid, argv in process.children if _is_engine(argv)]
    found.engines = [argv for _, argv in engines]
    if not engines:
        return
    pid, argv = engines[-1]
    place = f"/proc/{pid}/cmdline"
    kind = "llama-server" if Path(argv[0]).name.startswith("llama-server") else "ollama runner"
    found.add("runner", kind, place)
    if len(engines) == 1:
        for name, value in parse_flags(argv).items():
            if name in _RUNNING:
                found.add(name, value, place)


def _is_engine(argv: Sequence[str]) -> bool:
    return bool(argv) and ("--model" in argv or "-m" in argv or "runner" in argv[1:2])


def _add_api(found: _Collected, api: ApiReading, machine: Machine) -> None:
    url = found.values["url"]
    # The server's own word wins over its log's.
    found.values["version"], found.sources["server.version"] = api.version, f"{url}/api/version"
    found.add("installed", api.installed, f"{url}/api/tags")
    found.add("loaded", api.loaded, f"{url}/api/ps")
    found.add("models", api.models, f"{url}/api/show")
    environment = found.values.get("environment") or found.values.get("logged_environment") or {}
    if not found.values["remote"]:
        place = found.sources.get("server.environment") or found.sources.get("server.logged_environment") or ""
        found.add("models_dir", environment.get("OLLAMA_MODELS"), place)
        found.add("models_dir", api.models_dir, f"{url}/api/show")
        directory = found.values.get("models_dir")
        if directory is not None:
            system = {"darwin": "macos", "win32": "windows"}.get(machine.platform, machine.platform)
            found.add("storage", read_storage(machine.source, directory, system), "mounts")
        if directory is not None and not os.access(directory, os.R_OK | os.X_OK):
            user = found.values.get("user")
            help_ = f"sudo usermod -aG {user} $USER  # then log in again" if user else "run the command with sudo"
            found.missing("models", f"{directory} may not be read", help_)
    _name_models(found, api)
    if api.loaded is not None:
        held = tuple(_with_engine(model, api.blobs.get(model.name), found.engines) for model in api.loaded)
        found.values["loaded"] = held


def _with_engine(model: LoadedModelFacts, blob: str | None, engines: list[tuple[str, ...]]) -> LoadedModelFacts:
    """A loaded model with the command line and slots of the engine that holds it, where that is certain."""
    holders = [argv for argv in engines if blob is not None and blob in argv]
    if len(holders) != 1:
        return model
    slots = parse_flags(holders[0]).get("slots")
    return model.model_copy(update={"argv": holders[0], "slots": slots})


def _name_models(found: _Collected, api: ApiReading) -> None:
    """Put the models' names in place of their blobs' paths."""
    activity, directory = found.values.get("activity"), found.values.get("models_dir")
    if activity is None or directory is None:
        return
    own = [name for name in found.values.get("installed") or () if BEFORE_SUFFIX not in name]
    names = read_blob_names(own, Path(directory))
    for model in api.models or ():
        if model.blob is not None:
            names.setdefault(model.blob, model.name)
    found.values["activity"] = name_models(activity, names)


def _add_generation(found: _Collected) -> None:
    version = parse_version(found.values.get("version") or "")
    if version is not None:
        kind = "runner" if version < LLAMA_SERVER_ERA else "llama-server"
        found.add("generation", kind, found.sources.get("server.version", "version"))
    elif (runner := found.values.get("runner")) is not None:
        found.add(
            "generation", "llama-server" if runner == "llama-server" else "runner", found.sources["server.runner"]
        )


def _add_keep_alive(found: _Collected) -> None:
    """How long a model stays: by the environment, else by what the log says the server took, else the default."""
    for name in ("environment", "logged_environment"):
        environment = found.values.get(name)
        if environment is not None:
            seconds = parse_keep_alive(environment.get("OLLAMA_KEEP_ALIVE", ""))
            found.add(
                "keep_alive_s", DEFAULT_KEEP_ALIVE_S if seconds is None else seconds, found.sources[f"server.{name}"]
            )
            return
