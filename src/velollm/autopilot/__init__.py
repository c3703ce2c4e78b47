"""Fly the whole line: machine, plan, private trial, verdict, apply; keep only what measured well."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from velollm.autopilot.chart import chart, choose_backend, choose_model, find_model_facts, places_for
from velollm.autopilot.drafting import find_drafts
from velollm.autopilot.elsewhere import chart_elsewhere
from velollm.autopilot.landing import (
    activate,
    export_plan,
    find_flight,
    flights,
    land,
    measure_before,
    pending_of,
    planned_steps,
    restart_notes,
    undo,
)
from velollm.autopilot.made import Wish, make_model
from velollm.autopilot.measuring import Series, Wanted, measure
from velollm.autopilot.mending import Mending, choose_mendable, mend, mending_steps, unmendable
from velollm.autopilot.order import Cockpit, Course, Order, Outcome, Pending
from velollm.autopilot.racing import RaceWish
from velollm.autopilot.trial import Trial, try_plan
from velollm.autopilot.tuning import Tuning, give_up, raced_course, remember, tune
from velollm.autopilot.twin import MEASURED_ON_TWIN, TwinError, flown_on_twin
from velollm.backends.base import ModelRef, RunningServer
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_run import Runner
from velollm.bench.run import BrokenError
from velollm.config import Paths, ensure_dir, user_paths
from velollm.errors import EngineError, UsageError, VeloError
from velollm.knobs import Knobs
from velollm.targets.envfile import parse_env
from velollm.targets.file import FileTarget
from velollm.tune.heat import Race
from velollm.tune.track import reason_of

__all__ = [
    "Cockpit",
    "Course",
    "Mending",
    "Order",
    "Outcome",
    "Pending",
    "RaceWish",
    "Series",
    "Service",
    "Tuning",
    "Wanted",
    "Wish",
    "chart",
    "chart_elsewhere",
    "choose_mendable",
    "export_plan",
    "find_drafts",
    "find_flight",
    "flights",
    "fly",
    "make_model",
    "measure",
    "mend",
    "mending_steps",
    "pending_of",
    "planned_steps",
    "restart_notes",
    "run_server",
    "serve",
    "tune",
    "undo",
    "unmendable",
]


def fly(order: Order, cockpit: Cockpit, confirm: Callable[[Outcome], bool]) -> Outcome:
    """Plan, try privately, and, where the trial allows and ``confirm`` says yes, apply and confirm."""
    course = chart(order, cockpit)
    if not course.backend.knobs:
        raise UsageError(
            f"the backend '{course.backend.name}' has no knobs, so there is nothing to optimize",
            "`velollm bench` measures it as it runs",
        )
    backend = course.backend
    why = backend.untriable(course.model) if isinstance(backend, OllamaBackend) and course.plan.changes else None
    if why is None:
        return _fly(course, cockpit, confirm)
    assert isinstance(backend, OllamaBackend)
    untried = Outcome(course, course.plan, applied_reason=f"not tried: {why}", advised=True)
    if not backend.needs_twin(course.model):
        return untried
    try:
        with flown_on_twin(course, cockpit) as on_twin:
            return untried if on_twin is None else _fly(on_twin, cockpit, confirm)
    except TwinError as error:
        return replace(untried, applied_reason=f"not tried: the model's files cannot be read, and {error.message}")


def _fly(course: Course, cockpit: Cockpit, confirm: Callable[[Outcome], bool]) -> Outcome:
    """The flight from the race on."""
    course, trial, race = _try(course, cockpit)
    if trial is None:
        reason = "what is set now already is the plan" if course.current else "the defaults already are the plan"
        return Outcome(course, course.plan, applied_reason=reason)
    reason = f"{trial.reason}; {MEASURED_ON_TWIN}" if course.twin else trial.reason
    outcome = Outcome(course, trial.plan, trial.result, applied_reason=reason, advised=trial.keep, race=race)
    if not trial.keep:
        return outcome
    if not confirm(outcome):
        return replace(outcome, applied_reason=f"not applied, because nobody said yes; {reason}")
    if course.twin:
        outcome = replace(outcome, before=measure_before(outcome, cockpit))
    flight = land(course, trial.plan, reason, trial.result)
    if flight is None:
        return replace(outcome, pending=pending_of(course, trial.plan))
    return activate(replace(outcome, applied=True, flight=flight.id), cockpit)


def _try(course: Course, cockpit: Cockpit) -> tuple[Course, Trial | None, Race | None]:
    """The course as a race leaves it, its trial (None where it changes nothing), and the race that was run.

    What goes wrong with a twin is no fault of the user's model.
    """
    began_s, planned = time.monotonic(), course
    try:
        course, raced = raced_course(course, cockpit, course.order.budget_s)
        if not course.plan.changes:
            return course, None, None
        course.places.writes(course.plan.settings)  # what cannot be written is said before the trial, not after it
        try:
            trial = try_plan(course, cockpit, spent_s=time.monotonic() - began_s, raced=raced is not None)
        except (EngineError, BrokenError) as error:
            if course.plan.knobs == planned.plan.knobs or not planned.plan.changes:
                raise
            cockpit.note(f"What won the race fails in the trial: {reason_of(error)}. Trying the plan without it.")
            course = planned
            if raced is None:
                give_up(course, reason_of(error), cockpit)
            trial = try_plan(course, cockpit, spent_s=time.monotonic() - began_s)
    except VeloError as error:
        if course.twin:
            raise TwinError(f"the trial of its twin failed: {error.message}", error.hint) from error
        raise
    if raced is not None:
        proved = trial.keep and trial.plan == course.plan and course is not planned
        remember(course, raced, trial.result, proved, cockpit)
    return course, trial, None if raced is None else raced.race


def run_server(argv: Sequence[str], paths: Paths | None = None) -> int:
    """Be the parent of a server: start it with the applied environment, restart it when a flight asks; its status.

    A variable that the environment file sets to nothing is taken from the server, even where we have it.
    """
    paths = paths or user_paths()
    target = FileTarget(paths.ollama_env)

    def environ() -> dict[str, str]:
        applied = parse_env(target.read().text)
        return {key: value for key, value in {**os.environ, **applied}.items() if value or key not in applied}

    return Runner(argv, environ, paths.runner_state).run()


@dataclass(frozen=True)
class Service:
    """An engine that runs for good: its server, model and knobs, and where its log is."""

    server: RunningServer
    model: ModelRef
    knobs: Knobs
    log: Path


@contextmanager
def serve(order: Order, cockpit: Cockpit, *, port: int) -> Iterator[Service]:
    """Run the engine with the settings that flights have applied, until the context is left."""
    backend = choose_backend(order.backend, cockpit, wants_model=order.model is not None)
    model = choose_model(order.model, backend, order.paths, cockpit, make=True)
    facts = order.probe().model_copy(update={"model": find_model_facts(model, backend)})
    places = places_for(backend, model, order, facts)
    defaults = backend.default_knobs(facts)
    knobs = {**(places.knobs_of(places.read_settings(), defaults) or defaults), **order.pins}
    cockpit(0.0, f"loading {model.name}")
    log = _fresh_log(ensure_dir(order.paths.data) / "engine.log")
    with backend.trial(model, knobs, facts, log=log, port=port) as server:
        yield Service(server, model, knobs, log)


def _fresh_log(log: Path) -> Path:
    """A log that begins anew; the one of the run before is kept beside it, as ``NAME.1``."""
    with contextlib.suppress(OSError):
        log.replace(log.with_name(f"{log.name}.1"))
    return log
