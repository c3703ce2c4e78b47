"""Where the settings of our own engine runs live, and how changes to them become new file contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from velollm.backends.llamaargs import ARG_OF_KNOB, CONTEXT_ARG, parse_llama_args
from velollm.config import Paths
from velollm.errors import VeloError
from velollm.knobs import KNOBS, Knobs, KnobValue, parse_knob_value
from velollm.targets.base import State, Target
from velollm.targets.enginefile import parse_engine_settings, render_engine_settings
from velollm.targets.envfile import parse_env, render_env
from velollm.targets.file import FileTarget

Key = tuple[str, str]
_OURS = frozenset((*ARG_OF_KNOB.values(), CONTEXT_ARG))


@dataclass(frozen=True)
class Places:
    """The environment file and the engine settings that `velollm run` uses, for one model.

    A setting is known by (kind, key), where kind is that of `backends.base.Setting.target`.
    """

    environment: FileTarget
    engine: FileTarget
    model: str

    def read_settings(self) -> dict[Key, str]:
        """What is set now; other variables of the environment file are not ours and left out.

        Raises:
            VeloError: a file cannot be read or is damaged.
        """
        environ = parse_env(self.environment.read().text)
        found = {("environment", name): value for name, value in environ.items() if name in _OURS}
        knobs = parse_engine_settings(self.engine.read().text).get(self.model, {})
        found.update({("engine", name): str(value) for name, value in knobs.items()})
        return found

    def knobs_of(self, settings: Mapping[Key, str], defaults: Knobs) -> Knobs | None:
        """The defaults with what is set now laid over them; None where nothing is set."""
        if not settings:
            return None
        environ = {key: value for (kind, key), value in settings.items() if kind == "environment"}
        engine = {key: value for (kind, key), value in settings.items() if kind == "engine"}
        return {**defaults, **parse_llama_args(environ), **_parse_knobs(engine)}

    def label(self, kind: str) -> str:
        """The place of a kind of setting, for people."""
        return self.environment.label if kind == "environment" else self.engine.label

    def next_step(self) -> str:
        """What to type to use the settings."""
        return f"Use it: velollm run {self.model}"

    def writes(self, settings: Iterable[tuple[str, str, str | None]]) -> list[tuple[Target, State, State]]:
        """Targets with their states before and after these (kind, key, value) changes; value None removes."""
        environ: dict[str, str | None] = {}
        engine: dict[str, KnobValue] = {}
        for kind, key, value in settings:
            if kind == "environment":
                environ[key] = value
            else:
                engine[key] = None if value is None else parse_knob_value(key, value)
        found: list[tuple[Target, State, State]] = []
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


def engine_places(paths: Paths, model: str) -> Places:
    """The places of our own engine runs, for a model known by this key."""
    return Places(FileTarget(paths.engine_env), FileTarget(paths.engine_settings), model)


def overlay(places: Places, defaults: Knobs) -> Knobs:
    """The knobs that `velollm run` starts the engine with."""
    return places.knobs_of(places.read_settings(), defaults) or defaults
