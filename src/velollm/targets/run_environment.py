"""The environment file of `velollm run`: for a server that it is the parent of, and for one that anybody starts."""

from __future__ import annotations

import shlex
from pathlib import Path

from velollm.backends.ollama_run import read_runner_environ
from velollm.targets.activation import Activation, RunnerActivation
from velollm.targets.base import State
from velollm.targets.envfile import parse_env, render_env
from velollm.targets.environment import Changes, EnvironmentPlace, Ground
from velollm.targets.file import FileTarget
from velollm.targets.places import Write


class RunPlace(EnvironmentPlace):
    """``ollama.env`` in VeloLLM's own directory. It is always there to be used, so it comes last."""

    rank = 9

    def __init__(self, env_file: Path, state_file: Path, pid: int | None = None) -> None:
        self.file = FileTarget(env_file)
        self._state_file, self._pid = state_file, pid

    @classmethod
    def available(cls, ground: Ground) -> RunPlace:
        return cls(ground.paths.ollama_env, ground.paths.runner_state, ground.pid)

    @property
    def label(self) -> str:
        return self.file.label

    @property
    def activation(self) -> Activation:
        return RunnerActivation(self._state_file, self._pid)

    def read(self) -> dict[str, str]:
        return parse_env(self.file.read().text)

    def writes(self, changes: Changes) -> list[Write]:
        before = self.file.read()
        # What the server would inherit from `velollm run` is taken away only by saying so.
        inherited = read_runner_environ(self._state_file) or {}
        said = {name: "" if value is None and name in inherited else value for name, value in changes.items()}
        return [(self.file, before, State.of_text(render_env(before.text, said)))]

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        gone = [f"-u {name}" for name, value in changes.items() if value is None]
        words = [f"{name}={shlex.quote(value)}" for name, value in changes.items() if value is not None]
        return (" ".join([*(["env", *gone] if gone else []), *words, "ollama serve"]),)


place = RunPlace
