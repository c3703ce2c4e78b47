"""Where an Ollama server's settings live: its environment's place, the engine's config.ini, the model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_find import blob_of
from velollm.backends.ollama_render import PARAMETER_OF_KNOB, TUNING, parse_settings
from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.knobs import Knobs, KnobValue
from velollm.targets.activation import Activation
from velollm.targets.base import JSON, State, canonical_json
from velollm.targets.environment import EnvironmentPlace, Ground, choose_place
from velollm.targets.llama_config import LlamaConfig, find_config
from velollm.targets.ollama_model import (
    BEFORE_SUFFIX,
    BESIDE_SUFFIX,
    NO_VALUE,
    OllamaCopyTarget,
    OllamaModelTarget,
    merge_parameters,
    parse_parameters,
    read_digest,
    with_suffix,
)
from velollm.targets.places import ByHand, Key, Places, Write
from velollm.targets.run_environment import RunPlace

# Where the default that null brings is not what the engine would do by itself: it drafts 4 tokens for any model that
# names the parameter (server/routes.go:135-156).
_DEFAULTS = {"draft_num_predict": "0"}
_TUNED_PARAMETERS = frozenset((*PARAMETER_OF_KNOB.values(), "use_mmap"))


def tuning_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that tune a server, rather than say where it is."""
    return {k: v for k, v in environ.items() if k in TUNING or k.startswith("LLAMA_ARG_")}


class OllamaPlaces(Places):
    """Places of one model on one Ollama server, the environment's chosen by who keeps the server.

    ``ground`` None: the environment is that of `velollm run`, ``env_file``. ``beside`` leaves the model's own name
    alone. ``override``: a parameter that is taken away gives way to the engine's default, not to the original's own.
    ``recorded`` are the variables that flights have set, by the journal.
    """

    def __init__(
        self,
        backend: OllamaBackend,
        model: str,
        env_file: Path,
        *,
        beside: bool = False,
        override: bool = False,
        ground: Ground | None = None,
        recorded: Mapping[str, str] | None = None,
    ) -> None:
        self.backend, self.model, self.beside, self.override = backend, model, beside, override
        self._ground, self._recorded = ground, recorded or {}
        pid = backend.process.pid if backend.process else None
        run = RunPlace(env_file, user_paths().runner_state, pid)
        self.environment: EnvironmentPlace = run if ground is None else choose_place(ground)
        self._copy = with_suffix(model, BEFORE_SUFFIX)

    @cached_property
    def up(self) -> bool:
        """Does the user's server answer?"""
        return self.backend.version is not None

    @cached_property
    def _config(self) -> LlamaConfig | None:
        """The engine's own configuration; None where it has none that we can find."""
        try:
            return None if self._ground is None else find_config(self._ground)
        except VeloError:
            return None

    @property
    def activation(self) -> Activation:
        return self.environment.activation

    def read_settings(self) -> dict[Key, str]:
        environ = {**self._running(), **tuning_of(self.environment.read())}
        found = {("environment", key): value for key, value in environ.items()}
        parameters = self._parameters(self.model)
        found.update({("model", name): value for name, value in parameters.items() if value != NO_VALUE})
        if self._config is not None:
            found.update({("config", key): value for key, value in self._config.read().items()})
        return found

    def _running(self) -> dict[str, str]:
        """What tunes the server now: its process's word, else that of its keeper."""
        process, server = self.backend.process, self._ground.facts.server if self._ground else None
        if process is not None and process.environ is not None:
            return tuning_of(process.environ)
        configured = (server.configured if server else None) or {}
        return tuning_of({name: value for names in configured.values() for name, value in names.items()})

    def _parameters(self, name: str) -> dict[str, str]:
        if not self.up:
            return {}
        text = str(self.backend.api.show(name).get("parameters", ""))
        return {key: value for key, value in parse_parameters(text) if key in _TUNED_PARAMETERS}

    def own_knobs(self) -> dict[str, KnobValue]:
        """Knobs that the user has set: in the server's environment, or in the model as it was before us."""
        place = self.environment
        ours = place.ours() if place.owned else self._recorded
        # What of an owned place is not in a file of ours, such as a session's variable, is the user's too.
        there = {n: v for n, v in tuning_of(place.read()).items() if not place.owned or n not in ours}
        environ = {**self._running(), **there}
        own = {key: value for key, value in environ.items() if ours.get(key) != value}
        original = self._copy if self.up and self._has_copy() else self.model
        return parse_settings(own, _numbers(self._parameters(original)))

    def _has_copy(self) -> bool:
        """Is there a copy of the original, of the same weights? A name that was pulled anew has others."""
        api = self.backend.api
        if read_digest(api, self._copy) is None:
            return False
        ours, theirs = (blob_of(str(api.show(name).get("modelfile", ""))) for name in (self._copy, self.model))
        return ours == theirs

    def knobs_of(self, settings: Mapping[Key, str], defaults: Knobs) -> Knobs | None:
        environ = {key: value for (kind, key), value in settings.items() if kind == "environment"}
        parameters = {key: value for (kind, key), value in settings.items() if kind == "model"}
        options = {key: value for (kind, key), value in settings.items() if kind == "config"}
        found = parse_settings(environ, _numbers(parameters), options)
        return {**defaults, **{k: v for k, v in found.items() if k in defaults}} if found else None

    def label(self, kind: str) -> str:
        if kind == "environment":
            return self.environment.label
        if kind == "config":
            return self._config.label if self._config else "the engine's config.ini"
        return f"Ollama model {with_suffix(self.model, BESIDE_SUFFIX) if self.beside else self.model}"

    def next_step(self) -> str:
        name = with_suffix(self.model, BESIDE_SUFFIX) if self.beside else self.model
        return f"Use it: ollama run {name}"

    def writes(self, settings: Iterable[tuple[str, str, str | None]]) -> list[Write]:
        kinds = _by_kind(settings)
        environ, parameters, options = kinds["environment"], kinds["model"], kinds["config"]
        found: list[Write] = []
        if parameters and self.up:
            found += self._model_writes(parameters)
        if environ and self.environment.refusal() is None:
            found += self.environment.writes(environ)
        if options and (config := self._needed_config()).refusal() is None:
            found += config.writes(options)
        return found

    def _needed_config(self) -> LlamaConfig:
        if self._ground is None:
            raise VeloError("which config.ini the server's engine reads is not known", "start the server first")
        return find_config(self._ground)

    def by_hand(self, settings: Iterable[tuple[str, str, str | None]]) -> tuple[ByHand, ...]:
        """The changes that `writes` leaves out, because we may not make them, each kind with why and what to type."""
        kinds = _by_kind(settings)
        environ, options = kinds["environment"], kinds["config"]
        found: list[ByHand] = []
        if environ and (why := self.environment.refusal()) is not None:
            found.append(ByHand("environment", why, self.environment.by_hand(environ)))
        if options and (config := self._needed_config()) and (why := config.refusal()) is not None:
            found.append(ByHand("config", why, config.by_hand(options)))
        return tuple(found)

    def _model_writes(self, changes: Mapping[str, str | None]) -> list[Write]:
        """The copy of the original where there is none yet, and the name with the original's parameters and ours.

        What an earlier flight set stays. A value None takes it away, and the original's own holds again; with
        ``override`` the engine's default does, and where the original sets the parameter, ours has to say so.
        """
        api, url = self.backend.api, self.backend.url
        name = with_suffix(self.model, BESIDE_SUFFIX) if self.beside else self.model
        base = self.model if self.beside else self._copy
        kept = read_digest(api, base)
        if kept and not self.beside and not self._has_copy():
            raise VeloError(
                f"{base} is not the original of {self.model} any more",
                f"remove it, if you do not need it: ollama rm {base}",
            )
        digest = kept or read_digest(api, self.model)
        original = parse_parameters(str(api.show(base if kept else self.model).get("parameters", "")))
        ours = {} if self.beside else self._parameters(self.model)
        wanted = {key: value for key, value in {**ours, **changes}.items() if value is not None}
        if self.override:
            own = {pair[0] for pair in original}
            gone = [key for key, value in changes.items() if value is None and key in own]
            wanted.update({key: _DEFAULTS.get(key, NO_VALUE) for key in gone})
        merged = merge_parameters(original, wanted)
        writes: list[Write] = []
        if kept is None:
            if merged == original:
                return []
            writes.append((OllamaCopyTarget(url, base, self.model), State(None), _state({"digest": digest})))
        model = OllamaModelTarget(url, name, base)
        same = merged == original and not self.beside
        after = _state({"original": digest} if same else {"base": digest, "parameters": merged})
        writes.append((model, model.read(), after))
        return writes


def _by_kind(settings: Iterable[tuple[str, str, str | None]]) -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {"environment": {}, "model": {}, "config": {}}
    for kind, key, value in settings:
        found[kind][key] = value
    return found


def _state(content: JSON) -> State:
    return State(canonical_json(content))


def _numbers(texts: Mapping[str, str]) -> dict[str, object]:
    return {name: int(text) if text.lstrip("-").isdecimal() else text for name, text in texts.items()}
