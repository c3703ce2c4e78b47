"""A server in a container of a Compose project: the project's override file."""

from __future__ import annotations

import shlex
from pathlib import Path

from velollm.errors import VeloError
from velollm.targets.activation import Activation, CommandActivation
from velollm.targets.base import State
from velollm.targets.composefile import HEADER, parse_environment, render_environment
from velollm.targets.docker import Container, find_container
from velollm.targets.environment import Changes, EnvironmentPlace, Ground, refuse_foreign
from velollm.targets.file import FileTarget
from velollm.targets.places import Write
from velollm.targets.system import System

# In Compose's own order, which it looks for them in: compose-go cli/options.go, DefaultFileNames and
# DefaultOverrideFileNames. With any other file (`-f`) it reads no override by itself.
_MAIN = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDE = (
    *("compose.override.yml", "compose.override.yaml"),
    *("docker-compose.override.yml", "docker-compose.override.yaml"),
)


class ComposePlace(EnvironmentPlace):
    """The override file beside the project's own, which may hold settings of the user's too."""

    owned = False

    def __init__(self, container: Container, directory: Path, service: str, system: System) -> None:
        self._container, self._directory, self._service, self._system = container, directory, service, system
        self.path = self._choose()
        self.file = FileTarget(self.path)

    @classmethod
    def available(cls, ground: Ground) -> ComposePlace | None:
        container = find_container(ground)
        if container is None or container.service is None or container.project_dir is None:
            return None
        return cls(container, container.project_dir, container.service, ground.system)

    def _choose(self) -> Path:
        """The override file that Compose reads; one to be made is named after the project's own file."""
        names = [name for name in _OVERRIDE if (self._directory / name).is_file()]
        if names:
            return self._directory / names[0]
        main = next((f.name for f in self._container.files if f.name in _MAIN), _MAIN[0])
        stem, suffix = main.rsplit(".", 1)
        return self._directory / f"{stem}.override.{suffix}"

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def activation(self) -> Activation:
        words = ["docker", "compose", "--project-directory", str(self._directory)]
        if self._container.project:
            words += ["--project-name", self._container.project]
        return CommandActivation(([*words, "up", "-d", self._service],), self._system, self.refusal())

    def refusal(self) -> str | None:
        if not self._directory.is_dir():
            return f"the project's directory {self._directory} is not on this machine"
        others = [f for f in self._container.files if f.parent != self._directory or f.name not in (*_MAIN, *_OVERRIDE)]
        if others:
            return f"the project was started from {others[0]}, so Compose reads no override file by itself"
        if self._system.text_of(["docker", "compose", "version"]) is None:
            return "`docker compose` is not here"
        return None

    def read(self) -> dict[str, str]:
        return parse_environment(self.file.read().text, self._service)

    def check(self, changes: Changes) -> None:
        if gone := [name for name, value in changes.items() if value is None]:
            here = self.read()
            elsewhere = (name for name in gone if name not in here)
            refuse_foreign(elsewhere, self._container.environment, f"override file {self.label}")

    def writes(self, changes: Changes) -> list[Write]:
        self.check(changes)
        before = self.file.read()
        text = before.text if before.content is not None else HEADER
        try:
            after = State.of_text(render_environment(text, self._service, changes))
        except VeloError as error:
            raise VeloError(f"{self.label}: {error.message}", error.hint) from error
        if before.content is None and after.text == HEADER:
            return []
        return [] if before.matches(after) else [(self.file, before, after)]

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        files = [*self._container.files]
        if self.path not in files:
            files.append(self.path)
        snippet = render_environment(HEADER, self._service, changes)
        words = [
            "docker",
            "compose",
            *(word for file in files for word in ("-f", str(file))),
            "up",
            "-d",
            self._service,
        ]
        return (f"# into {self.path}:", *snippet.splitlines()[1:], shlex.join(words))


place = ComposePlace
