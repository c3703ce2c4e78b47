"""Where the settings of our own engine runs live, and how changes to them become new file contents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from velollm.backends.llamaargs import ARG_OF_KNOB, CONTEXT_ARG, parse_llama_args
from velollm.config import Paths
from velollm.errors import VeloError
from velollm.knobs import KNOBS, Knobs, KnobValue, parse_knob_value
from velollm.targets.activation import Activation
from velollm.targets.base import State, Target
from velollm.targets.enginefile import parse_engine_settings, render_engine_settings
from velollm.targets.envfile import parse_env, render_env
from velollm.targets.file import FileTarget

Key = tuple[str, str]
"""A setting: the kind of its place (that of `backends.base.Setting.target`), and its name there."""

Write = tuple[Target, State, State]
"""A target, its state now, and its state to be."""
_OURS = frozenset((*ARG_OF_KNOB.values(), CONTEXT_ARG))


@dataclass(frozen=True)
class ByHand:
    """Changes of one kind that only a person can make: why, and what to type."""

    kind: str
    why: str
    commands: tuple[str, ...]


class Places(ABC):
    """The places where one backend keeps its settings for one model."""

    @abstractmethod
    def read_settings(self) -> dict[Key, str]:
        """What is set now. Raises `VeloError` where a place cannot be read or is damaged."""

    @abstractmethod
    def knobs_of(self, settings: Mapping[Key, str], defaults: Knobs) -> Knobs | None:
        """The defaults with what is set now laid over them; None where nothing is set."""

    def own_knobs(self) -> dict[str, KnobValue]:
        """Knobs that the user, not a flight, has set."""
        return {}

    @property
    def activation(self) -> Activation | None:
        """How a change of an environment takes effect; None where nothing that runs has to be restarted."""
        return None

    def by_hand(self, settings: Iterable[tuple[str, str, str | None]]) -> tuple[ByHand, ...]:
        """The changes that `writes` leaves out, because only a person can make them."""
        return ()

    @abstractmethod
    def label(self, kind: str) -> str:
        """The place of a kind of setting, for people."""

    @abstractmethod
    def next_step(self) -> str:
        """What to type to use the settings."""

    @abstractmethod
    def writes(self, settings: Iterable[tuple[str, str, str | None]]) -> list[Write]:
        """What these (kind, key, value) changes mean for the targets; value None removes."""


@dataclass(frozen=True)
class EnginePlaces(Places):
    """The environment file and the engine settings that `velollm run` uses, for one model.

    Other variables of the environment file are not ours and are left alone.
    """

    environment: FileTarget
    engine: FileTarget
    model: str

    def read_settings(self) -> dict[Key, str]:
        environ = parse_env(self.environment.read().text)
        found = {("environment", name): value for name, value in environ.items() if name in _OURS}
        knobs = parse_engine_settings(self.engine.read().text).get(self.model, {})
        found.update({("engine", name): str(value) for name, value in knobs.items()})
        return found

    def knobs_of(self, settings: Mapping[Key, str], defaults: Knobs) -> Knobs | None:
        if not settings:
            return None
        environ = {key: value for (kind, key), value in settings.items() if kind == "environment"}
        engine = {key: value for (kind, key), value in settings.items() if kind == "engine"}
        return {**defaults, **parse_llama_args(environ), **_parse_knobs(engine)}

    def label(self, kind: str) -> str:
        return self.environment.label if kind == "environment" else self.engine.label

    def next_step(self) -> str:
        return f"Use it: velollm run {self.model}"

    def writes(self, settings: Iterable[tuple[str, str, str | None]]) -> list[Write]:
        environ: dict[str, str | None] = {}
        engine: dict[str, KnobValue] = {}
        for kind, key, value in settings:
            if kind == "environment":
                environ[key] = value
            else:
                engine[key] = None if value is None else parse_knob_value(key, value)
        found: list[Write] = []
        if environ:
            before = self.environment.read()
            found.append((self.environment, before, State.of_text(render_env(before.text, environ))))
        if engine:
            before = self.engine.read()
            text = render_engine_settings(before.text, self.model, engine)
            found.append((self.engine, before, State.of_text(text)))
        return found


def _parse_knobs(texts: Mapping[str, str]) -> dict[str, KnobValue]:
    knobs: dict[str, KnobValue] = {}
    for name, text in texts.items():
        if name not in KNOBS:
            continue
        try:
            knobs[name] = parse_knob_value(name, text)
        except ValueError as error:
            raise VeloError(f"the engine settings are damaged: {error}", "mend engine.yaml or remove it") from error
    return knobs


def engine_places(paths: Paths, model: str) -> EnginePlaces:
    """The places of our own engine runs, for a model known by this key."""
    return EnginePlaces(FileTarget(paths.engine_env), FileTarget(paths.engine_settings), model)
