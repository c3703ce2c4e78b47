"""The single settings inside what a target holds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping

from velollm.errors import VeloError
from velollm.targets.base import State
from velollm.targets.enginefile import parse_engine_settings
from velollm.targets.envfile import parse_env
from velollm.targets.ollama_model import NO_VALUE

_UNIT_LINE = re.compile(r"^\s*Environment=(.*)$", re.MULTILINE)
_MANIFESTS = ("original", "base", "digest")


def parse_settings_of(state: State) -> dict[str, str] | None:
    """Settings by name; None where the content is nothing that can be taken apart.

    Known are environment files, a unit's ``Environment=`` lines, ``engine.yaml`` (keys ``MODEL: knob``), and the JSON
    of a model (its parameters) or of any other place (its entries).
    """
    if state.content is None:
        return {}
    try:
        text = state.content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text.lstrip().startswith("{"):
        return _of_json(text)
    if _UNIT_LINE.search(text):
        return _of_unit(text)
    if re.search(r"^models:", text, re.MULTILINE):
        return _of_engine(text)
    try:
        return parse_env(text)
    except VeloError:
        return None


def _of_json(text: str) -> dict[str, str] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    pairs = data.get("parameters")
    if isinstance(pairs, list):
        return _of_pairs(pairs)
    return {str(name): _text(value) for name, value in data.items() if name not in _MANIFESTS and value is not None}


def _of_pairs(pairs: list[object]) -> dict[str, str]:
    """[name, value] pairs; of a name that comes more than once all values, joined."""
    found: dict[str, str] = {}
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2 and pair[1] != NO_VALUE:
            name, value = str(pair[0]), str(pair[1])
            found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_unit(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in _UNIT_LINE.finditer(text):
        found.update(_words(match.group(1)))
    return found


def _words(value: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(value)
    except ValueError:
        words = value.split()
    for word in words:
        name, equals, text = word.partition("=")
        if equals:
            yield name, text


def _of_engine(text: str) -> dict[str, str] | None:
    try:
        models: Mapping[str, Mapping[str, object]] = parse_engine_settings(text)
    except VeloError:
        return None
    return {f"{model}: {knob}": str(value) for model, knobs in models.items() for knob, value in knobs.items()}
