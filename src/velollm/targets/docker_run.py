"""A server in a container of `docker run`: its environment is fixed, so only the commands for another one are shown."""

from __future__ import annotations

import json

from velollm.errors import VeloError
from velollm.targets.activation import Activation, ManualActivation
from velollm.targets.docker import Container, find_container, render_run
from velollm.targets.environment import Changes, EnvironmentPlace, Ground
from velollm.targets.places import Write
from velollm.targets.system import System

_WHY = "a container's environment is fixed when it is made, and VeloLLM makes none anew"


class DockerRunPlace(EnvironmentPlace):
    """Never written to. ``container`` None: Docker does not tell which one it is."""

    rank = 1
    owned = False

    def __init__(self, container: Container | None, system: System) -> None:
        self._container, self._system = container, system

    @classmethod
    def available(cls, ground: Ground) -> DockerRunPlace | None:
        container, server = find_container(ground), ground.facts.server
        if container is None and (server is None or server.managed != "container"):
            return None
        return cls(container, ground.system)

    @property
    def label(self) -> str:
        return f"container {self._container.name}" if self._container else "the server's container"

    @property
    def activation(self) -> Activation:
        return ManualActivation(self.by_hand({}), _WHY)

    def refusal(self) -> str | None:
        return _WHY

    def read(self) -> dict[str, str]:
        return self._own() if self._container else {}

    def _own(self) -> dict[str, str]:
        """The container's variables that its image does not set itself."""
        assert self._container is not None
        text = self._system.text_of(["docker", "image", "inspect", "-f", "{{json .Config.Env}}", self._container.image])
        try:
            built_in = json.loads(text or "null") or []
        except ValueError:
            built_in = []
        return {k: v for k, v in self._container.environment.items() if f"{k}={v}" not in built_in}

    def writes(self, changes: Changes) -> list[Write]:
        raise VeloError(_WHY, "; ".join(self.by_hand(changes)))

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        if self._container is not None:
            return render_run(self._container, self._own(), changes)
        options = " ".join(f"-e {name}={value}" for name, value in changes.items() if value is not None)
        return (f"make the container anew: docker run {options} …",)


place = DockerRunPlace
