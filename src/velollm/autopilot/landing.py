"""Apply a plan that its trial has earned, confirm it on the user's own server, and take it back where it is slower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from velollm import __version__
from velollm.apply import UndoResult, Write, apply_writes, undo_flight
from velollm.autopilot.order import Cockpit, Course, Outcome, Pending
from velollm.autopilot.record import flight_details
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_run import find_runner, reach_runner
from velollm.bench.result import BenchResult
from velollm.bench.run import Arm, Budget, OverBudgetError, run_bench
from velollm.bench.stats import compare_arms
from velollm.bench.workload import load_workload
from velollm.config import Paths, user_paths
from velollm.journal import Flight, FlightMeta, Journal
from velollm.plan import Change, Plan
from velollm.targets.export import render_export, write_export
from velollm.targets.ollama_model import BESIDE_SUFFIX, with_suffix

_CONFIRM_S = 40.0


def land(course: Course, plan: Plan, reason: str, trial: BenchResult | None = None) -> Flight | None:
    """Write the plan's settings, journalled with the trial's verdict; None where everything was so already."""
    changes = [(change.target, change.key, change.after) for change in plan.changes]
    writes = [Write(target, after, before) for target, before, after in course.places.writes(changes)]
    meta = FlightMeta(
        version=__version__,
        backend=course.backend.name,
        model=course.model.name,
        summary=", ".join(f"{change.key}={change.after}" for change in plan.changes),
        details=flight_details(plan, reason, trial),
    )
    return apply_writes(writes, journal_of(course.order.paths), meta)


def activate(outcome: Outcome, cockpit: Cockpit) -> Outcome:
    """Make an applied plan effective where that can be done, confirm it there, or undo it where it is slower."""
    backend, course = outcome.course.backend, outcome.course
    if not isinstance(backend, OllamaBackend):
        return outcome
    environment = [change for change in outcome.plan.changes if change.target == "environment"]
    runner = find_runner(course.order.paths.runner_state, backend.process.pid if backend.process else None)
    if environment and runner is not None:
        cockpit(0.96, "restarting your server with the new environment")
        runner.restart()
        backend.forget()
    elif environment:
        outcome = replace(outcome, pending=tuple(_pending(course, change) for change in environment))
    if backend.version is None or outcome.trial is None:
        return outcome
    confirmed = confirm(outcome, backend, cockpit)
    if confirmed is None:
        return outcome
    outcome = replace(outcome, confirmed=confirmed)
    if (slower := _slower_than_before(outcome, confirmed)) is None:
        return outcome
    undo_flight(journal_of(course.order.paths), outcome.flight)
    if environment and runner is not None:
        runner.restart()
    return replace(outcome, applied=False, applied_reason=f"undone by itself: {slower}", pending=())


def _pending(course: Course, change: Change) -> Pending:
    return Pending(course.places.label(change.target), change.key, change.after, "velollm run -- ollama serve")


def confirm(outcome: Outcome, backend: OllamaBackend, cockpit: Cockpit) -> BenchResult | None:
    """The same measure on the user's server as it now runs; None where there was no time for it."""
    course, trial = outcome.course, outcome.trial
    assert trial is not None
    name = with_suffix(course.model.name, BESIDE_SUFFIX) if course.order.beside else course.model.name
    cockpit(0.97, "confirming on your own server")
    try:
        return run_bench(
            [Arm("applied", lambda: backend.user_server(name))],
            load_workload(outcome.plan.profile.workload),
            Budget(min(_CONFIRM_S, course.order.budget_s), quick=True),
            progress=lambda done, _text, left_s: cockpit(done, "confirming on your own server", left_s),
            seed=1,
        )
    except OverBudgetError:
        return None


def _slower_than_before(outcome: Outcome, confirmed: BenchResult) -> str | None:
    """How much slower the server is than before, where that is proved and beyond what the profile accepts."""
    trial, profile = outcome.trial, outcome.plan.profile
    assert trial is not None
    before = "current" if "current" in trial.arms else "default"
    ratio = compare_arms((*trial.runs, *confirmed.runs), before, "applied", profile.metric)
    if ratio.verdict != "slower" or ratio.estimate is None or ratio.estimate >= 1 - profile.accepted_price:
        return None
    return f"on your own server {profile.metric} is {ratio.estimate:.2f} times what it was before"


def export_plan(outcome: Outcome, directory: Path) -> tuple[Path, ...]:
    """Write the kept plan as files to take along; what was written."""
    settings = outcome.course.backend.render(outcome.plan.knobs, outcome.course.facts)
    model = outcome.course.model
    name = model.name if outcome.course.backend.name == "ollama" else str(model.path or model.name)
    return write_export(directory, render_export(settings, name))


def undo(flight: str | None, paths: Paths | None = None) -> UndoResult:
    """Take back a flight, or the newest that changed anything; a server of `velollm run` is restarted without it."""
    paths = paths or user_paths()
    result = undo_flight(journal_of(paths), flight)
    env_file = str(paths.ollama_env)
    if env_file in result.restored and (runner := reach_runner(paths.runner_state)) is not None:
        runner.restart()
    return result


def flights(paths: Paths | None = None) -> list[Flight]:
    """Every flight so far, oldest first."""
    return journal_of(paths or user_paths()).read_flights()


def find_flight(flight_id: str, paths: Paths | None = None) -> Flight:
    """One flight. Raises `VeloError` where there is none of that id."""
    return journal_of(paths or user_paths()).read_flight(flight_id)


def journal_of(paths: Paths) -> Journal:
    """The journal under the user's data directory."""
    return Journal(paths.journal)
