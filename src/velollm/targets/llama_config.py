"""llama.cpp's own configuration file, for options of the engine that have no environment variable.

Ollama's engine reads it since Ollama 0.32.15 at each start, so a model that is loaded anew has it; no server restarts.
Places: llama.cpp b10488 common/arg.cpp:717-761 and common/common.cpp, `fs_get_config_directory`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from velollm.backends.ollama_render import CONFIG_ERA, parse_version
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.base import ABSENT, State
from velollm.targets.environment import Ground
from velollm.targets.file import FileTarget
from velollm.targets.inifile import parse_config, render_config
from velollm.targets.places import Write
from velollm.targets.sudofile import SudoFileTarget
from velollm.targets.system import System

HEADER = "# Written by VeloLLM: options for the engine of every model. `velollm undo` takes it back.\n"


class LlamaConfig:
    """``llama.cpp/config.ini`` in the configuration directory of the user that the server runs as."""

    def __init__(self, path: Path, user: str | None, system: System) -> None:
        self._user, self._system = user, system
        other = user is not None and not system.root and user != _own_name()
        self.file: FileTarget = SudoFileTarget(path, user=user or "root", system=system) if other else FileTarget(path)
        self._other = other

    @property
    def label(self) -> str:
        return self.file.label

    def read(self) -> dict[str, str]:
        """Options that it sets for every model. Raises `VeloError` where it cannot be read."""
        return parse_config(self.file.read().text)

    def writes(self, changes: Mapping[str, str | None]) -> list[Write]:
        """What these options (long names, without dashes) mean for the file; None takes one away."""
        before = self.file.read()
        text = render_config(before.text if before.content is not None else HEADER, changes)
        after = ABSENT if before.content is None and not parse_config(text) else State.of_text(text)
        if before.content is None and after.content is not None:
            after = State(after.content, 0o644)
        return [] if before.matches(after) else [(self.file, before, after)]

    def refusal(self) -> str | None:
        """Why we cannot write there ourselves; None where we can."""
        if not self._other or self._system.may_sudo():
            return None
        return f"only {self._user} may write {self.label}"

    def by_hand(self, changes: Mapping[str, str | None]) -> tuple[str, ...]:
        """What a person would type to set these options."""
        lines = ["[*]", *(f"{key} = {value}" for key, value in changes.items() if value is not None)]
        path, sudo = shlex.quote(self.label), f"sudo -u {self._user} " if self._other else ""
        text = shlex.join(["printf", r"%s\n", *lines])
        return (f"{sudo}mkdir -p {shlex.quote(str(self.file.path.parent))}", f"{text} | {sudo}tee -a {path}")


def find_config(ground: Ground) -> LlamaConfig:
    """The file that the engines of this server read.

    Raises:
        VeloError: the server's engine reads none, or where it is cannot be known.
    """
    server, system = ground.facts.server, ground.system
    version = parse_version((server.version if server else None) or "")
    if version is not None and version < CONFIG_ERA:
        told = ".".join(map(str, version))
        raise VeloError(f"the engine of Ollama {told} reads no config.ini", "Ollama 0.32.15 and later do")
    if server is not None and (server.remote or server.managed == "container"):
        raise VeloError("the server's config.ini is not on this machine", "write it where the server runs")
    directory = _config_dir(server, ground.pid, system)
    if directory is None:
        raise VeloError("the home of the server's user cannot be seen", "run this one command with sudo")
    return LlamaConfig(directory / "llama.cpp" / "config.ini", server.user if server else None, system)


def _config_dir(server: ServerFacts | None, pid: int | None, system: System) -> Path | None:
    """By the process's own environment where it may be read, else by its user's home."""
    if system.platform == "win32":
        return Path(system.environ["APPDATA"]) if system.environ.get("APPDATA") else None
    environ = _read_environ(system.proc, pid)
    if environ is not None:
        if environ.get("XDG_CONFIG_HOME"):
            return Path(environ["XDG_CONFIG_HOME"])
        if environ.get("HOME"):
            return Path(environ["HOME"]) / ".config"
    if server is None or server.user is None:
        return system.config if pid is None else None
    home = _home_of(server.user)
    return None if home is None else home / ".config"


def _read_environ(proc: Path, pid: int | None) -> dict[str, str] | None:
    if pid is None:
        return None
    try:
        text = (proc / str(pid) / "environ").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    pairs = (item.partition("=") for item in text.split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def _home_of(user: str) -> Path | None:
    if sys.platform == "win32":
        return None
    import pwd

    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        return None


def _own_name() -> str | None:
    if sys.platform == "win32":
        return None
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None
