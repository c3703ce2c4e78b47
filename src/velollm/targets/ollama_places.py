"""Where an Ollama server's settings live: the environment file of `velollm run`, and the model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_find import blob_of
from velollm.backends.ollama_render import PARAMETER_OF_KNOB, parse_settings
from velollm.errors import VeloError
from velollm.knobs import Knobs, KnobValue
from velollm.targets.base import JSON, State, canonical_json
from velollm.targets.envfile import parse_env, render_env
from velollm.targets.file import FileTarget
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
from velollm.targets.places import Key, Places, Write

_TUNING = frozenset(
    f"OLLAMA_{name}"
    for name in (
        *("NUM_PARALLEL", "CONTEXT_LENGTH", "KEEP_ALIVE"),
        *("MAX_LOADED_MODELS", "FLASH_ATTENTION", "KV_CACHE_TYPE"),
    )
)
# Where the default that null brings is not what the engine would do by itself: it drafts 4 tokens for any model that
# names the parameter (server/routes.go:135-156).
_DEFAULTS = {"draft_num_predict": "0"}
_TUNED_PARAMETERS = frozenset((*PARAMETER_OF_KNOB.values(), "use_mmap"))


def tuning_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that tune a server, rather than say where it is."""
    return {k: v for k, v in environ.items() if k in _TUNING or k.startswith("LLAMA_ARG_")}


class OllamaPlaces(Places):
    """Places of one model on one Ollama server. ``beside`` leaves the model's own name alone.

    ``override``: a parameter that is taken away gives way to the engine's default, not to the original's own.
    """

    def __init__(
        self, backend: OllamaBackend, model: str, env_file: Path, *, beside: bool = False, override: bool = False
    ) -> None:
        self.backend, self.model, self.beside, self.override = backend, model, beside, override
        self.environment = FileTarget(env_file)
        self._copy = with_suffix(model, BEFORE_SUFFIX)

    @cached_property
    def up(self) -> bool:
        """Does the user's server answer?"""
        return self.backend.version is not None

    def read_settings(self) -> dict[Key, str]:
        process = self.backend.process
        running = tuning_of(process.environ) if process is not None and process.environ is not None else {}
        environ = {**running, **parse_env(self.environment.read().text)}
        found = {("environment", key): value for key, value in environ.items()}
        parameters = self._parameters(self.model)
        found.update({("model", name): value for name, value in parameters.items() if value != NO_VALUE})
        return found

    def _parameters(self, name: str) -> dict[str, str]:
        if not self.up:
            return {}
        text = str(self.backend.api.show(name).get("parameters", ""))
        return {key: value for key, value in parse_parameters(text) if key in _TUNED_PARAMETERS}

    def own_knobs(self) -> dict[str, KnobValue]:
        """Knobs that the user has set: in the server's environment, or in the model as it was before us."""
        process = self.backend.process
        running = tuning_of(process.environ) if process is not None and process.environ is not None else {}
        ours = parse_env(self.environment.read().text)
        own = {key: value for key, value in running.items() if ours.get(key) != value}
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
        found = parse_settings(environ, _numbers(parameters))
        return {**defaults, **{k: v for k, v in found.items() if k in defaults}} if found else None

    def label(self, kind: str) -> str:
        if kind == "environment":
            return self.environment.label
        return f"Ollama model {with_suffix(self.model, BESIDE_SUFFIX) if self.beside else self.model}"

    def next_step(self) -> str:
        name = with_suffix(self.model, BESIDE_SUFFIX) if self.beside else self.model
        return f"Use it: ollama run {name}"

    def writes(self, settings: Iterable[tuple[str, str, str | None]]) -> list[Write]:
        settings = list(settings)
        environ = {key: value for kind, key, value in settings if kind == "environment"}
        parameters = {key: value for kind, key, value in settings if kind == "model"}
        found: list[Write] = []
        if parameters and self.up:
            found += self._model_writes(parameters)
        if environ:
            before = self.environment.read()
            found.append((self.environment, before, State.of_text(render_env(before.text, environ))))
        return found

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


def _state(content: JSON) -> State:
    return State(canonical_json(content))


def _numbers(texts: Mapping[str, str]) -> dict[str, object]:
    return {name: int(text) if text.lstrip("-").isdecimal() else text for name, text in texts.items()}
