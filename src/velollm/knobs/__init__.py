"""The vocabulary of settings: knobs, what a user wants of them, and how a plan chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from velollm.knobs.table import (
    DRAFT_KINDS,
    KNOBS,
    KV_TYPES,
    LOAD_MODES,
    NGRAM_KINDS,
    PATH,
    PRIORITIES,
    QUANTIZED_KV_TYPES,
    SPECULATION_KINDS,
    Knob,
)
from velollm.units import parse_duration_s

__all__ = [
    "DRAFT_KINDS",
    "KNOBS",
    "KV_TYPES",
    "LOAD_MODES",
    "NGRAM_KINDS",
    "PRIORITIES",
    "QUANTIZED_KV_TYPES",
    "SPECULATION_KINDS",
    "Basis",
    "Choice",
    "Knob",
    "KnobValue",
    "Knobs",
    "Profile",
    "Wish",
    "parse_knob_value",
]

KnobValue = bool | int | float | str | None
Knobs = Mapping[str, KnobValue]
Basis = Literal["measured", "engine", "corrected", "arithmetic", "table", "user", "unknown"]


def parse_knob_value(name: str, text: str) -> KnobValue:
    """Value of ``--set NAME=TEXT``.

    Raises:
        ValueError: the knob does not exist, or the text is no value of it; the message says why.
    """
    knob = KNOBS.get(name)
    if knob is None:
        raise ValueError(f"there is no knob '{name}'")
    text = text.strip()
    if knob.unit == PATH and text:
        return text
    text = text.lower()
    if knob.choices:
        if text not in knob.choices:
            raise ValueError(f"{name} is one of {', '.join(knob.choices)}, not '{text}'")
        return text
    number = parse_duration_s(text) if name.endswith("_s") else _parse_int(text)
    if number is None:
        raise ValueError(f"{name} is a number of {knob.unit}, not '{text}'")
    if knob.minimum is not None and number < knob.minimum:
        raise ValueError(f"{name} is at least {knob.minimum:g}, not {text}")
    return int(number)


def _parse_int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Profile:
    """What the user wants, as `configs/profiles/*.yaml` says it.

    ``workload`` names the file in `benchmarks/workloads` whose figures count, ``metric`` the ratio that
    decides, ``objective`` what a race is about: a whole ``turn`` of one user, or the ``aggregate`` of several.
    ``keep_alive_s`` None leaves the engine's own. ``speculation`` lists kinds worth a trial.
    ``accepted_price``: by how much the deciding ratio may be proved lower for what the plan enables
    (0.1 = a tenth), because that is what this profile is for. ``may_shrink_context``: the wanted
    context counts even where it is smaller than the engine's own. A model is recommended that decodes at least
    ``decode_floor_tokens_per_s`` for one user and has the ``capabilities``; one that is made for one thing alone only
    where that is among the ``purposes``, or nothing else suits. Time to its first token is told for a prompt of
    ``prompt_tokens``.
    """

    name: str
    summary: str
    context_tokens: int
    slots: int
    workload: str
    metric: Literal["decode", "prefill", "ttft", "aggregate_4", "worst_ttft_4"]
    keep_alive_s: int | None = None
    minimum_context_tokens: int = 4096
    speculation: tuple[str, ...] = ()
    accepted_price: float = 0.0
    max_loaded_models: int | None = None
    may_shrink_context: bool = False
    decode_floor_tokens_per_s: float = 10.0
    prompt_tokens: int = 512
    capabilities: tuple[str, ...] = ()
    objective: Literal["turn", "aggregate"] = "turn"
    purposes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One knob as a plan (or a rule) sets it, with the reason and what the reason rests on."""

    name: str
    value: KnobValue
    reason: str
    basis: Basis


@dataclass(frozen=True)
class Wish:
    """What a rule may look at besides facts: the profile, the engine's defaults, the user's pins and its knobs.

    ``current``: what is set now, which stays where another value could change answers.
    """

    profile: Profile
    defaults: Knobs = field(default_factory=dict)
    pins: Knobs = field(default_factory=dict)
    backend: str = ""
    supported: frozenset[str] = frozenset(KNOBS)
    current: Knobs = field(default_factory=dict)
