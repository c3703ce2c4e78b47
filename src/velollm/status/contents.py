"""The single settings inside what a target holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from velollm.errors import VeloError
from velollm.targets.base import Address, State
from velollm.targets.composefile import parse_environment, parse_services
from velollm.targets.enginefile import parse_engine_settings
from velollm.targets.envfile import parse_env
from velollm.targets.inifile import parse_config
from velollm.targets.launchd import LaunchdVariableTarget, parse_agent
from velollm.targets.ollama_model import NO_VALUE
from velollm.targets.unitfile import parse_dropin, parse_unset
from velollm.targets.windows_environment import WindowsVariableTarget

_MANIFESTS = ("original", "base", "digest")


def parse_settings_of(state: State, address: Address | None = None) -> dict[str, str] | None:
    """Settings by name; None where the content is nothing that can be taken apart.

    ``address`` is of the target: a variable of a session or an account has its name there. Known besides are
    environment files, a unit's drop-in, a launchd agent, a Compose file, ``config.ini``, ``engine.yaml`` (keys
    ``MODEL: knob``), and the JSON of a model (its parameters) or of any other place (its entries).
    """
    if state.content is None:
        return {}
    try:
        text = state.content.decode("utf-8")
        return _parse(text, address or {})
    except (UnicodeDecodeError, VeloError):
        return None


def _parse(text: str, address: Address) -> dict[str, str] | None:
    name, kind = str(address.get("name")), address.get("kind")
    if kind == LaunchdVariableTarget.kind:
        return {name: text}
    if kind == WindowsVariableTarget.kind:
        return {name: (_of_json(text) or {}).get("value", "")}
    if str(address.get("path", "")).endswith(".ini"):
        return parse_config(text)
    if text.lstrip().startswith("{"):
        return _of_json(text)
    if text.startswith("<?xml"):
        return parse_agent(text.encode())
    return _of_lines(text)


def _of_lines(text: str) -> dict[str, str]:
    head = re.search(r"^(\[Service\]|services:|models:)", text, re.MULTILINE)
    if head is None:
        return parse_env(text)
    if head.group(1) == "[Service]":
        # What is taken away by name is like what an environment file of ours sets to nothing.
        return {**parse_dropin(text), **dict.fromkeys(parse_unset(text), "")}
    return _of_compose(text) if head.group(1) == "services:" else _of_engine(text)


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


def _of_compose(text: str) -> dict[str, str]:
    """Variables of all services together, for a flight changes those of one."""
    return {name: value for service in parse_services(text) for name, value in parse_environment(text, service).items()}


def _of_engine(text: str) -> dict[str, str]:
    models: Mapping[str, Mapping[str, object]] = parse_engine_settings(text)
    return {f"{model}: {knob}": str(value) for model, knobs in models.items() for knob, value in knobs.items()}
