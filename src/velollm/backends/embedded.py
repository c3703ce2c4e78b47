"""llama.cpp inside the xllamacpp wheel, always in a child process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.backends.child import Child
from velollm.backends.embedded_child import READY
from velollm.backends.gguf_files import find_gguf
from velollm.backends.llamaargs import ARG_OF_KNOB, NO_DEBUGGER, OPENMP_WAIT, render_arg
from velollm.backends.llamabase import refuse_taken, serving
from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs

_ENVIRONMENT = {**ARG_OF_KNOB, "openmp_wait": OPENMP_WAIT}
_OWN = frozenset(KNOBS) - {"keep_alive_s", "max_loaded_models", "priority", "polling"}


class EmbeddedBackend(Backend):
    """The engine that is there wherever the `embedded` extra is installed.

    Settings that hold for every model go to the environment file, those of one model to the engine
    settings; `velollm run` uses both.
    """

    name = "embedded"
    knobs = _OWN

    def missing(self) -> str | None:
        if importlib.util.find_spec("xllamacpp") is None:
            return "the embedded engine is not installed: pipx inject velollm xllamacpp"
        if sys.platform == "linux" and not has_libgomp():
            return f"the embedded engine needs the system library libgomp.so.1: {libgomp_command()}"
        return None

    def engine_version(self, log: str) -> str | None:
        """That of the wheel: the llama.cpp in it calls itself build 0."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version("xllamacpp")
        return None

    def find_model(self, name: str) -> ModelRef:
        return find_gguf(name)

    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        defaults = self.default_knobs(facts)
        settings: list[Setting] = []
        for name, value in knobs.items():
            if name not in self.knobs or value is None or value == defaults.get(name):
                continue
            if KNOBS[name].scope == "server" and name in _ENVIRONMENT:
                settings.append(Setting("environment", _ENVIRONMENT[name], render_arg(name, value), name))
            else:
                settings.append(Setting("engine", name, str(value), name))
        return tuple(settings)

    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> AbstractContextManager[RunningServer]:
        refuse_taken(port)
        return serving(start_engine(model, knobs, log=log, port=port), model, progress)


def start_engine(
    model: ModelRef, knobs: Knobs, *, log: Path, port: int = 0, environ: Mapping[str, str] | None = None
) -> Child:
    """Start the engine's process; ``port`` 0 lets the kernel choose one."""
    wanted = json.dumps({"model": str(model.path), "knobs": dict(knobs), "port": port})
    return Child(
        [sys.executable, "-m", "velollm.backends.embedded_child"],
        log=log,
        environ={**_with_wait(os.environ if environ is None else environ, knobs), **NO_DEBUGGER},
        ready=parse_ready,
        first_line=wanted,
    )


def _with_wait(environ: Mapping[str, str], knobs: Knobs) -> Mapping[str, str]:
    """The OpenMP run-time reads how to wait when it starts, so it cannot be a parameter."""
    wait = knobs.get("openmp_wait")
    return environ if wait is None else {**environ, OPENMP_WAIT: str(wait)}


def parse_ready(line: str) -> str | None:
    """Address of the line that says that the engine can answer.

    It comes through standard output, which the engine's log does not share.
    """
    match = re.match(rf"{READY}(http://\S+)$", line)
    return match.group(1) if match else None


def has_libgomp() -> bool:
    """Can the dynamic linker find libgomp.so.1, which the wheel does not carry?"""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True


_LIBGOMP_COMMANDS = {
    "debian": "apt-get install libgomp1",
    "ubuntu": "apt-get install libgomp1",
    "fedora": "dnf install libgomp",
    "rhel": "dnf install libgomp",
    "suse": "zypper install libgomp1",
    "arch": "pacman -S gcc-libs",
    "alpine": "apk add libgomp",
}


def libgomp_command(os_release: str | None = None) -> str:
    """The command that installs libgomp.so.1 on this distribution; without a known one, the package's name."""
    if os_release is None:
        try:
            os_release = Path("/etc/os-release").read_text(encoding="utf-8")
        except OSError:
            os_release = ""
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    names = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
    for name in names:
        if command := _LIBGOMP_COMMANDS.get(name):
            return f"sudo {command}"
    return "install the package that holds it (libgomp1 or libgomp)"


backend = EmbeddedBackend()
