"""A systemd unit's drop-in of our own, as a place for a server's environment."""

from __future__ import annotations

import shlex
from pathlib import Path

from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.activation import Activation, CommandActivation
from velollm.targets.base import ABSENT, State
from velollm.targets.environment import Changes, EnvironmentPlace
from velollm.targets.file import FileTarget
from velollm.targets.places import Write
from velollm.targets.system import System
from velollm.targets.unitfile import parse_dropin, parse_unset, render_dropin, unit_line

FILE = "velollm.conf"
MODE = 0o644


class DropinPlace(EnvironmentPlace):
    """``UNIT.d/velollm.conf``. It is read after files of a name before it, such as the ``override.conf`` of
    `systemctl edit`; an ``EnvironmentFile=`` wins over it (systemd.exec(5)).
    """

    def __init__(self, unit: str, directory: Path, server: ServerFacts, system: System) -> None:
        self.unit, self._server, self._system = unit, server, system
        self.path = directory / f"{unit}.d" / FILE
        self.file = self._target(self.path)

    def _target(self, path: Path) -> FileTarget:
        return FileTarget(path)

    @property
    def _systemctl(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def activation(self) -> Activation:
        words = self._systemctl
        commands = ((*words, "daemon-reload"), (*words, "restart", self.unit))
        return CommandActivation(commands, self._system, self.refusal())

    def read(self) -> dict[str, str]:
        return parse_dropin(self._ours(self.file.read()))

    def _ours(self, state: State) -> str:
        """The text of a file that is as we would write it. Raises `VeloError` where somebody has edited it."""
        if state.content is not None and render_dropin(_parse(state.text)) != state.text:
            raise VeloError(
                f"{self.label} was not written by VeloLLM, or was edited since",
                f"move it to another name, such as {self.path.with_name('override.conf')}",
            )
        return state.text

    def check(self, changes: Changes) -> None:
        if shadowed := self._shadowed(changes):
            files = " and ".join(sorted(set(shadowed.values())))
            raise VeloError(f"{', '.join(shadowed)}: set in {files}, which wins over a drop-in", "change it there")

    def writes(self, changes: Changes) -> list[Write]:
        self.check(changes)
        before = self.file.read()
        after = self._after(_parse(self._ours(before)), changes)
        return [] if before.matches(after) else [(self.file, before, after)]

    def _after(self, now: Changes, changes: Changes) -> State:
        merged = {**now, **changes}
        environment = {name: value for name, value in merged.items() if value is not None or self._unsets(name, now)}
        return State(render_dropin(environment).encode(), MODE) if environment else ABSENT

    def _unsets(self, name: str, now: Changes) -> bool:
        """Does it take an `UnsetEnvironment=` to be rid of a variable: does another place than our drop-in set it?"""
        ours, configured = now.get(name), (self._server.configured or {}).values()
        seen = [names[name] for names in (*configured, self._server.environment or {}) if name in names]
        return (name in now and ours is None) or any(value != ours for value in seen)

    def _shadowed(self, changes: Changes) -> dict[str, str]:
        """Changes that an environment file of the unit would undo, and that file."""
        files = {p: names for p, names in (self._server.configured or {}).items() if p.startswith("/")}
        return {
            name: path
            for name, value in changes.items()
            for path, names in files.items()
            if value is not None and name in names and names[name] != value
        }

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        lines = ["[Service]", *(unit_line(n, v) for n, v in changes.items() if v is not None or self._unsets(n, {}))]
        text = shlex.join(["printf", r"%s\n", *lines])
        sudo = self._systemctl[0] == "sudo"
        directory, path = shlex.quote(str(self.path.parent)), shlex.quote(str(self.path))
        write = f"{text} | sudo tee {path}" if sudo else f"{text} > {path}"
        return (f"{'sudo ' if sudo else ''}mkdir -p {directory}", write, *self.activation.commands())


def _parse(text: str) -> dict[str, str | None]:
    """What a drop-in sets, and, as None, what it takes away."""
    return {**parse_dropin(text), **dict.fromkeys(parse_unset(text))}
