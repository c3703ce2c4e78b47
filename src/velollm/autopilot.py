"""Fly the whole line: machine, plan, private trial, verdict, apply; keep only what measured well."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from velollm import __version__
from velollm.apply import UndoResult, Write, apply_writes, undo_flight
from velollm.backends.base import Backend, ModelRef, RunningServer, iter_backends
from velollm.bench.result import BenchResult
from velollm.bench.run import Arm, Budget, run_bench
from velollm.bench.workload import load_workload
from velollm.config import Paths, ensure_dir, user_paths
from velollm.errors import UsageError, VeloError
from velollm.facts import Facts, ModelFacts
from velollm.journal import Flight, FlightMeta, Journal
from velollm.knobs import Knobs, KnobValue
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_total_bytes
from velollm.models.synthetic import SHAPE_1B, ensure_model, estimate_file_bytes
from velollm.plan import Plan, load_profile, make_plan, without_speed_knobs
from velollm.probe.machine import probe_machine
from velollm.targets.export import render_export, write_export
from velollm.targets.places import Places, engine_places, overlay
from velollm.tune.keep import decide
from velollm.units import render_bytes

_QUICK_S = 25.0
_SECOND_TRIAL_SHARE = 0.4
_SHORTEST_TRIAL_S = 20.0
# Servers may be up side by side only where this share of the free memory holds them all.
_MEMORY_SHARE = 0.6


class Cockpit(Protocol):
    """How a flight talks to whoever flies it."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        """Work is ``done`` (0 to 1), ``left_s`` seconds are left."""

    def note(self, text: str) -> None:
        """A line that stays."""


@dataclass(frozen=True)
class Order:
    """What the user asked for. ``paths`` and ``probe`` are parameters so that a test can be another machine."""

    model: str | None = None
    backend: str = "auto"
    profile: str = "chat"
    pins: Mapping[str, KnobValue] = field(default_factory=dict)
    budget_s: float = 180.0
    quick: bool = False
    paths: Paths = field(default_factory=user_paths)
    probe: Callable[[], Facts] = probe_machine


@dataclass(frozen=True)
class Course:
    """Everything that is settled before the trial. ``current``: what is set now; None where nothing is."""

    order: Order
    backend: Backend
    model: ModelRef
    facts: Facts
    plan: Plan
    current: Knobs | None
    places: Places


@dataclass(frozen=True)
class Outcome:
    """How a flight ended. ``plan`` holds what was kept; ``tried`` is what the last trial measured."""

    course: Course
    plan: Plan
    trial: BenchResult | None = None
    tried: Plan | None = None
    applied: bool = False
    applied_reason: str = ""
    advised: bool = False
    pending: tuple[str, ...] = ()
    flight: str | None = None


def choose_backend(name: str, cockpit: Cockpit) -> Backend:
    """The backend of that name, or for ``auto`` Ollama, then the embedded engine, then `llama-server`.

    Raises `VeloError` where none can be used.
    """
    backends = {backend.name: backend for backend in iter_backends()}
    if name != "auto":
        if name not in backends:
            raise UsageError(f"there is no backend '{name}'", f"backends: auto, {', '.join(backends)}")
        if lacking := backends[name].missing():
            raise _unusable(lacking)
        return backends[name]
    reasons: list[str] = []
    for candidate in ("ollama", "embedded", "llamacpp"):
        backend = backends[candidate]
        lacking = backend.missing()
        if lacking is None:
            if candidate != "ollama":
                cockpit.note(f"No Ollama found here: flying on the {candidate} engine.")
            return backend
        reasons.append(lacking)
    raise _unusable(reasons[1])


def _unusable(lacking: str) -> VeloError:
    message, _, hint = lacking.partition(": ")
    return VeloError(message, hint or "choose another --backend")


def choose_model(name: str | None, backend: Backend, paths: Paths, cockpit: Cockpit, *, make: bool) -> ModelRef:
    """The model of that name; without one, the model made on the spot: a real shape, random weights, in the cache.

    With ``make`` off it is only named, and made later.
    """
    if name is not None:
        return backend.find_model(name)
    directory = paths.cache / "models"
    size = render_bytes(estimate_file_bytes(SHAPE_1B))
    if not make:
        return ModelRef(SHAPE_1B.name, None)
    ensure_dir(directory)

    def progress(done: int, total: int) -> None:
        cockpit(done / total, f"making a model to measure with ({size})")

    path = ensure_model(SHAPE_1B, directory, progress=progress)
    cockpit.note(f"Measuring with a made model of random weights, shaped like a 1.1B one: {path} ({size}).")
    return ModelRef(SHAPE_1B.name, path)


def chart(order: Order, cockpit: Cockpit, *, make: bool = True) -> Course:
    """Look at the machine and the model, and work out the plan; changes nothing."""
    profile = load_profile(order.profile)
    backend = choose_backend(order.backend, cockpit)
    model = choose_model(order.model, backend, order.paths, cockpit, make=make)
    cockpit(0.0, "looking at the machine")
    facts = order.probe().model_copy(update={"model": _model_facts(model)})
    places = engine_places(order.paths, str(model.path or model.name))
    settings = places.read_settings()
    current = places.knobs_of(settings, backend.default_knobs(facts))
    plan = make_plan(facts, backend, profile, order.pins, current, current_settings=settings)
    return Course(order, backend, model, facts, plan, current, places)


def _model_facts(model: ModelRef) -> ModelFacts | None:
    if model.path is not None:
        return model_facts(read_gguf(model.path), model.name)
    return SHAPE_1B.facts() if model.name == SHAPE_1B.name else None


def compare(course: Course, plan: Plan, cockpit: Cockpit, budget_s: float) -> BenchResult:
    """Measure the plan against the engine's default, and against what is set now where that is something else."""
    arms = {"default": dict(plan.defaults)}
    if course.current is not None and dict(course.current) != arms["default"]:
        arms["current"] = dict(course.current)
    arms["tuned"] = plan.knobs
    contexts = [c for knobs in arms.values() if isinstance(c := knobs.get("context_tokens"), int)]
    with tempfile.TemporaryDirectory(prefix="velollm-trial-") as scratch:

        def arm(name: str, knobs: Knobs) -> Arm:
            log = Path(scratch) / f"{name}.log"
            return Arm(name, lambda: course.backend.trial(course.model, knobs, course.facts, log=log))

        return run_bench(
            [arm(name, knobs) for name, knobs in arms.items()],
            load_workload(plan.profile.workload),
            Budget(budget_s, quick=course.order.quick),
            together=_fit_together(course.facts, list(arms.values())),
            progress=cockpit,
            context_tokens=min(contexts, default=None),
        )


def _fit_together(facts: Facts, arms: list[dict[str, KnobValue]]) -> bool:
    """May the servers be up side by side? Only without a GPU to share, and with memory to spare."""
    memory, model = facts.memory, facts.model
    if facts.gpus or memory is None or memory.available_bytes is None or model is None:
        return False
    free = memory.available_bytes
    if memory.limit_bytes is not None:
        free = min(free, memory.limit_bytes - (memory.limit_used_bytes or 0))
    total = 0
    for knobs in arms:
        if (estimate := estimate_total_bytes(model, knobs)) is None:
            return False
        total += estimate.total_bytes
    return total < _MEMORY_SHARE * free


def bench(order: Order, cockpit: Cockpit) -> tuple[Course, BenchResult]:
    """Measure the default settings against the plan's; applies nothing."""
    course = chart(order, cockpit)
    budget_s = _QUICK_S if order.quick else order.budget_s
    return course, compare(course, course.plan, cockpit, budget_s)


def fly(order: Order, cockpit: Cockpit, confirm: Callable[[Outcome], bool]) -> Outcome:
    """Plan, try privately, and, where the trial allows and ``confirm`` says yes, apply."""
    course = chart(order, cockpit)
    if not course.plan.changes:
        reason = "what is set now already is the plan" if course.current else "the defaults already are the plan"
        return Outcome(course, course.plan, applied_reason=reason)
    tried, result, keep, reason = _try(course, cockpit)
    outcome = Outcome(course, tried, result, tried, applied_reason=reason, advised=keep)
    if not keep:
        return outcome
    if not confirm(outcome):
        return replace(outcome, applied_reason=f"not applied, because nobody said yes; {reason}")
    flight = land(course, tried, reason)
    return replace(outcome, applied=True, flight=flight.id if flight else None)


def _try(course: Course, cockpit: Cockpit) -> tuple[Plan, BenchResult, bool, str]:
    """Trials until law 4 is content: with everything, then, where speed was not proved, without the knobs for it."""
    began_s = time.monotonic()
    baselines = {"default": course.plan.defaults, **({"current": course.current} if course.current else {})}
    bare = without_speed_knobs(course.plan, course.facts, course.backend)
    total_s = course.order.budget_s
    second_s = total_s * _SECOND_TRIAL_SHARE if bare.knobs != course.plan.knobs and bare.changes else 0.0
    result = compare(course, course.plan, cockpit, max(total_s - second_s, _SHORTEST_TRIAL_S))
    decision = decide(course.plan, result, baselines)
    if decision.action != "drop_speed":
        return course.plan, result, decision.action == "keep", decision.reason
    if not bare.changes:
        return course.plan, result, False, decision.reason
    cockpit.note(f"{decision.reason}: trying the plan without its knobs for speed.")
    left_s = max(total_s - (time.monotonic() - began_s), _SHORTEST_TRIAL_S)
    result = compare(course, bare, cockpit, left_s)
    decision = decide(bare, result, baselines)
    return bare, result, decision.action == "keep", decision.reason


def land(course: Course, plan: Plan, reason: str) -> Flight | None:
    """Write the plan's settings, journalled; None where everything was so already."""
    changes = [(change.target, change.key, change.after) for change in plan.changes]
    writes = [Write(target, after, before) for target, before, after in course.places.writes(changes)]
    meta = FlightMeta(
        version=__version__,
        backend=course.backend.name,
        model=course.model.name,
        summary=", ".join(f"{change.key}={change.after}" for change in plan.changes),
        details={"profile": plan.profile.name, "reason": reason},
    )
    return apply_writes(writes, _journal(course.order.paths), meta)


def export_plan(outcome: Outcome, directory: Path) -> tuple[Path, ...]:
    """Write the kept plan as files to take along; what was written."""
    settings = outcome.course.backend.render(outcome.plan.knobs, outcome.course.facts)
    model = outcome.course.model
    return write_export(directory, render_export(settings, str(model.path or model.name)))


@dataclass(frozen=True)
class Service:
    """An engine that runs for good: its server, model and knobs."""

    server: RunningServer
    model: ModelRef
    knobs: Knobs


@contextmanager
def serve(order: Order, cockpit: Cockpit, *, port: int) -> Iterator[Service]:
    """Run the engine with the settings that flights have applied, until the context is left."""
    backend = choose_backend(order.backend, cockpit)
    model = choose_model(order.model, backend, order.paths, cockpit, make=True)
    facts = order.probe().model_copy(update={"model": _model_facts(model)})
    places = engine_places(order.paths, str(model.path or model.name))
    knobs = {**overlay(places, backend.default_knobs(facts)), **order.pins}
    cockpit(0.0, f"loading {model.name}")
    log = ensure_dir(order.paths.data) / "engine.log"
    with backend.trial(model, knobs, facts, log=log, port=port) as server:
        yield Service(server, model, knobs)


def undo(flight: str | None, paths: Paths | None = None) -> UndoResult:
    """Take back a flight, or the newest that changed anything."""
    return undo_flight(_journal(paths or user_paths()), flight)


def flights(paths: Paths | None = None) -> list[Flight]:
    """Every flight so far, oldest first."""
    return _journal(paths or user_paths()).read_flights()


def _journal(paths: Paths) -> Journal:
    return Journal(paths.journal)
