"""From facts and wishes to a plan: one reasoned value for every knob, and what it changes here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml
from pydantic import TypeAdapter

from velollm.backends.base import Backend
from velollm.config import data_dir
from velollm.discover import collect
from velollm.errors import UsageError, VeloError
from velollm.facts import Facts
from velollm.knobs import KNOBS, QUANTIZED_KV_TYPES, SPECULATION_KINDS, Basis, Choice, Knobs, KnobValue, Profile, Wish
from velollm.rules.base import Advice, Nearest, Rule, Skip
from velollm.rules.placement import Placement

Settings = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Change:
    """One setting that the plan turns: ``before`` None where it was not set, ``after`` None where it goes away."""

    target: str
    key: str
    before: str | None
    after: str | None
    reason: str
    basis: Basis


@dataclass(frozen=True)
class Plan:
    """The chosen knobs with their reasons, and the changes that they mean on one backend.

    ``choices``: one for every knob of the backend, in the order of `KNOBS`. ``defaults``: what the engine
    would do by itself. ``candidates``: other values worth measuring, each to be laid over ``knobs``.
    ``skipped``: rules without advice, and why. ``current`` and ``current_settings``: what is set now.
    ``kept``: knobs that the user has set; the settings of them that are there stay as they are typed.
    ``placement``: what the model takes on each device (None: it does not fit, or is not known); ``nearest``: what would
    fit in its stead.
    """

    backend: str
    profile: Profile
    choices: tuple[Choice, ...]
    defaults: Knobs
    candidates: tuple[Knobs, ...] = ()
    skipped: Mapping[str, Skip] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    pins: Knobs = field(default_factory=dict)
    current: Knobs = field(default_factory=dict)
    current_settings: Settings = field(default_factory=dict)
    placement: Placement | None = None
    nearest: tuple[Nearest, ...] = ()
    kept: frozenset[str] = frozenset()

    @property
    def knobs(self) -> dict[str, KnobValue]:
        """Value of every knob of the backend; None is left to the engine."""
        return {choice.name: choice.value for choice in self.choices}

    @property
    def settings(self) -> list[tuple[str, str, str | None]]:
        """The changes as places take them: (kind, key, value); value None takes the setting away."""
        return [(change.target, change.key, change.after) for change in self.changes]


def list_profiles() -> tuple[str, ...]:
    """Names of the profiles that ship with the program."""
    return tuple(sorted(path.stem for path in _profile_dir().glob("*.yaml")))


def load_profile(name: str) -> Profile:
    """The profile of that name from `configs/profiles`.

    Raises:
        UsageError: there is no such profile.
        VeloError: its file is damaged.
    """
    names = list_profiles()
    if name not in names:
        raise UsageError(f"there is no profile '{name}'", f"profiles: {', '.join(names)}")
    path = _profile_dir() / f"{name}.yaml"
    try:
        return _parse_profile(name, path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise VeloError(f"the profile {path} cannot be read: {error}", "install VeloLLM again") from error


def _profile_dir() -> Path:
    return data_dir("configs") / "profiles"


def _parse_profile(name: str, text: str) -> Profile:
    """A profile from its YAML. Raises ValueError where a field is missing, unknown or of the wrong kind."""
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ValueError("it is no mapping")
    known = {item.name for item in dataclasses.fields(Profile)} - {"name"}
    if unknown := set(data) - known:
        raise ValueError(f"unknown field: {', '.join(sorted(map(str, unknown)))}")
    # By way of JSON, because only there a strict check takes a mapping for a dataclass and a list for a tuple.
    profile = TypeAdapter(Profile).validate_json(json.dumps({**data, "name": name}, default=str), strict=True)
    if unknown := set(profile.speculation) - set(SPECULATION_KINDS):
        raise ValueError(f"unknown speculation: {', '.join(sorted(unknown))}")
    if not 1 <= profile.minimum_context_tokens <= profile.context_tokens or profile.slots < 1:
        raise ValueError("context and slots must be at least 1, and the minimum context not above the wanted one")
    return profile


def order_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules in an order in which every need is set before it is read; by id where both orders would do.

    Raises:
        ValueError: two rules own one knob, a need has no owner, a knob does not exist, or needs go round in a circle.
    """
    owners: dict[str, Rule] = {}
    for rule in rules:
        for knob in rule.sets:
            if knob not in KNOBS:
                raise ValueError(f"the rule {rule.id} sets '{knob}', which is no knob")
            if knob in owners:
                raise ValueError(f"the rules {owners[knob].id} and {rule.id} both own {knob}")
            owners[knob] = rule
    for rule in rules:
        for knob in rule.needs:
            if knob not in owners:
                raise ValueError(f"the rule {rule.id} needs {knob}, which no rule sets")
    waiting, done, ordered = sorted(rules, key=lambda rule: rule.id), set[str](), list[Rule]()
    while waiting:
        ready = next((rule for rule in waiting if done.issuperset(rule.needs)), None)
        if ready is None:
            raise ValueError(f"the needs of these rules go round in a circle: {', '.join(r.id for r in waiting)}")
        waiting.remove(ready)
        ordered.append(ready)
        done.update(ready.sets)
    return tuple(ordered)


def load_rules() -> tuple[Rule, ...]:
    """All rules of `velollm.rules`, in the order in which they run."""
    return order_rules(collect("velollm.rules", "rule", Rule))


def make_plan(
    facts: Facts,
    backend: Backend,
    profile: Profile,
    pins: Knobs | None = None,
    current: Knobs | None = None,
    *,
    current_settings: Settings | None = None,
    kept: Iterable[str] = (),
) -> Plan:
    """Work out the plan for one machine, model, backend and profile; touches nothing.

    ``current`` are the knobs as the user runs with them now, where that is known; ``current_settings`` the
    backend's settings that are there now, by (target, key). A knob without advice keeps what it has now. ``kept``:
    pins that are not of this plan, but the user's settings that it leaves alone.

    Raises:
        UsageError: a pinned knob is one that the backend does not have.
    """
    pins, current = dict(pins or {}), {k: v for k, v in (current or {}).items() if k in backend.knobs}
    _check_pins(pins, backend)
    known = backend.default_knobs(facts)
    defaults = {name: known.get(name) for name in KNOBS if name in backend.knobs}
    wish = Wish(profile, defaults, pins, backend.name, backend.knobs, current)
    chosen: dict[str, Choice] = {}
    skipped: dict[str, Skip] = {}
    others: list[Knobs] = []
    placement: Placement | None = None
    nearest: tuple[Nearest, ...] = ()
    for rule in load_rules():
        advice = rule.decide(facts, {name: choice.value for name, choice in chosen.items()}, wish)
        if isinstance(advice, Skip):
            skipped[rule.id] = advice
            choices = [_unadvised(name, advice.reason, defaults, current, pins) for name in rule.sets]
        else:
            others.extend(advice.candidates)
            choices = [_advised(name, advice, defaults, current, pins) for name in rule.sets]
            if advice.left:
                skipped[rule.id] = next(iter(advice.left.values()))
            placement, nearest = advice.placement or placement, advice.nearest or nearest
        chosen.update({choice.name: choice for choice in choices if choice.name in backend.knobs})
    choices_all = tuple(
        chosen.get(name) or Choice(name, defaults[name], "no rule speaks of it", "engine") for name in defaults
    )
    plan = Plan(
        backend=backend.name,
        profile=profile,
        choices=choices_all,
        defaults=defaults,
        candidates=tuple(_worth_measuring(others, {c.name: c.value for c in choices_all})),
        skipped=skipped,
        pins=pins,
        current=current,
        current_settings=dict(current_settings or {}),
        placement=placement,
        nearest=nearest,
        kept=frozenset(kept),
    )
    return dataclasses.replace(plan, changes=_changes(plan, facts, backend))


def _check_pins(pins: Knobs, backend: Backend) -> None:
    for name in pins:
        if name not in backend.knobs:
            known = ", ".join(knob for knob in KNOBS if knob in backend.knobs)
            raise UsageError(f"the backend '{backend.name}' has no knob '{name}'", f"its knobs: {known}")


def _unadvised(name: str, reason: str, defaults: Knobs, current: Knobs, pins: Knobs) -> Choice:
    """A knob whose rule lacked something: the user's word needs no rule."""
    if pins.get(name) is not None:
        return Choice(name, pins[name], "you asked for it with --set", "user")
    return _kept(name, reason, defaults, current)


def _kept(name: str, reason: str, defaults: Knobs, current: Knobs) -> Choice:
    """A knob without advice: what the user has now, else the engine's default."""
    if name in current and current[name] != defaults.get(name):
        return Choice(name, current[name], f"left as you have it: {reason}", "user")
    value = defaults.get(name)
    return Choice(name, value, reason, "unknown" if value is None else "engine")


def _advised(name: str, advice: Advice, defaults: Knobs, current: Knobs, pins: Knobs) -> Choice:
    """A knob with advice. One that can change answers stays as the user has it, unless `--set` names it."""
    if name in advice.left:
        return _unadvised(name, advice.left[name].reason, defaults, current, pins)
    value = advice.values[name]
    if KNOBS[name].changes_answer and name not in pins and current.get(name) not in (None, value):
        return _kept(name, "another value could change answers", defaults, current)
    return Choice(name, value, *advice.why(name))


def _worth_measuring(others: Iterable[Knobs], knobs: Knobs) -> Iterable[Knobs]:
    """Candidates that the backend can set and that differ from the plan."""
    for overlay in others:
        if set(overlay) <= set(knobs) and any(knobs[name] != value for name, value in overlay.items()):
            yield dict(overlay)


def _changes(plan: Plan, facts: Facts, backend: Backend) -> tuple[Change, ...]:
    """What the plan's settings are against those that are there now; equal ones are no change."""
    by_knob = {choice.name: choice for choice in plan.choices}
    changes: list[Change] = []
    settings = backend.render(plan.knobs, facts)
    for setting in settings:
        before = plan.current_settings.get((setting.target, setting.key))
        if before != setting.value and (before is None or setting.knob not in plan.kept):
            choice = by_knob[setting.knob]
            changes.append(Change(setting.target, setting.key, before, setting.value, choice.reason, choice.basis))
    wanted = {(setting.target, setting.key) for setting in settings}
    for setting in backend.render(plan.current, facts) if plan.current else ():
        place = cast(tuple[str, str], (setting.target, setting.key))
        if place in plan.current_settings and place not in wanted:
            choice = by_knob[setting.knob]
            changes.append(Change(*place, plan.current_settings[place], None, choice.reason, choice.basis))
    return tuple(changes)


def without_speed_knobs(plan: Plan, facts: Facts, backend: Backend) -> Plan:
    """The plan with its knobs for speed put back to what runs now, else to the engine's default.

    Pinned knobs stay, and so do those that a pinned one cannot do without.
    """
    choices = tuple(_unproved(choice, plan) for choice in plan.choices)
    reverted = dataclasses.replace(plan, choices=choices)
    return dataclasses.replace(reverted, changes=_changes(reverted, facts, backend))


def with_raced(plan: Plan, values: Knobs, reason: str, facts: Facts, backend: Backend) -> Plan:
    """The plan with values that a race has found; what the user pinned stays."""
    raced = {name: value for name, value in values.items() if name not in plan.pins}
    choices = tuple(
        Choice(choice.name, raced[choice.name], reason, "measured") if choice.name in raced else choice
        for choice in plan.choices
    )
    changed = dataclasses.replace(plan, choices=choices, candidates=())
    return dataclasses.replace(changed, changes=_changes(changed, facts, backend))


def is_for_speed(choice: Choice, pins: Knobs) -> bool:
    """Must this choice prove that it is faster? What the user pinned need not, nor a batch that memory cut."""
    if choice.name in ("batch", "ubatch") and choice.basis == "arithmetic":
        return False
    return KNOBS[choice.name].purpose == "speed" and choice.name not in pins


def _unproved(choice: Choice, plan: Plan) -> Choice:
    fallback = plan.current.get(choice.name, plan.defaults.get(choice.name))
    if not is_for_speed(choice, plan.pins) or choice.value == fallback:
        return choice
    if _needed(choice.name, fallback, plan.knobs, plan.pins):
        return choice
    return Choice(choice.name, fallback, "not proved faster here", "measured")


def _needed(name: str, fallback: KnobValue, knobs: Knobs, pins: Knobs) -> bool:
    """Would the fallback break what another knob needs? Quantized V needs flash attention, ubatch <= batch."""
    if name == "flash_attention":
        return fallback == "off" and knobs.get("kv_type_v") in QUANTIZED_KV_TYPES
    if name not in ("batch", "ubatch") or not isinstance(fallback, int):
        return False
    pin = pins.get("ubatch" if name == "batch" else "batch")
    return isinstance(pin, int) and (fallback < pin if name == "batch" else fallback > pin)
