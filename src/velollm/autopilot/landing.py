"""Apply a plan that its trial has earned, confirm it on the user's own server, and take it back where it is slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from velollm import __version__
from velollm.apply import UndoResult, Write, apply_writes, undo_flight
from velollm.autopilot.order import Cockpit, Course, Outcome, Pending, Restart
from velollm.autopilot.record import flight_details
from velollm.autopilot.restart import answers, find_fault, restart
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_run import reach_runner
from velollm.bench.result import BenchResult
from velollm.bench.run import Arm, Budget, OverBudgetError, run_bench
from velollm.bench.sizes import Sizes
from velollm.bench.stats import compare_arms
from velollm.bench.workload import Workload, load_workload
from velollm.config import Paths, user_paths
from velollm.errors import VeloError
from velollm.journal import Flight, FlightMeta, Journal
from velollm.plan import Plan
from velollm.targets.activation import Activation, RunnerActivation, activation_from_address
from velollm.targets.base import JSON
from velollm.targets.export import render_export, write_export
from velollm.targets.ollama_model import BESIDE_SUFFIX, with_suffix
from velollm.targets.system import System

_CONFIRM_S = 60.0


def land(course: Course, plan: Plan, reason: str, trial: BenchResult | None = None) -> Flight | None:
    """Write the plan's settings, journalled with the trial's verdict.

    None where everything was so already, or only a person can write it.
    """
    writes = [Write(target, after, before) for target, before, after in course.places.writes(plan.settings)]
    meta = FlightMeta(
        version=__version__,
        backend=course.backend.name,
        model=course.model.name,
        summary=", ".join(f"{change.key}={change.after}" for change in plan.changes),
        details={**flight_details(plan, reason, trial), **_restart_details(course, plan)},
    )
    return apply_writes(writes, journal_of(course.order.paths), meta)


def planned_steps(course: Course, plan: Plan) -> tuple[str, ...]:
    """What applying a plan runs on this machine beside writing files of the user's own, to be shown before."""
    writes = course.places.writes(plan.settings)
    steps = [line for target, _, after in writes for line in target.commands(after)]
    activation = course.places.activation
    if _environment(course, plan) and activation is not None and activation.lacking() is None:
        steps += activation.steps
    return tuple(steps)


def _environment(course: Course, plan: Plan) -> dict[str, str | None]:
    """The plan's variables that we write ourselves."""
    if any(item.kind == "environment" for item in course.places.by_hand(plan.settings)):
        return {}
    return {change.key: change.after for change in plan.changes if change.target == "environment"}


def _restart_details(course: Course, plan: Plan) -> dict[str, JSON]:
    """What undo needs to bring the old environment back to life, and later flights to tell ours from the user's."""
    environment, activation = _environment(course, plan), course.places.activation
    if not environment or activation is None:
        return {}
    changes = [(kind, key, after) for kind, key, after in plan.settings if kind == "environment"]
    places = [target.label for target, _, _ in course.places.writes(changes)]
    return {"environment": environment, "restart": {"activation": activation.address(), "places": places}}


def pending_of(course: Course, plan: Plan) -> tuple[Pending, ...]:
    """What of a plan only a person can write, and how."""
    found: list[Pending] = []
    for item in course.places.by_hand(plan.settings):
        commands = " && ".join(item.commands)
        label = course.places.label(item.kind)
        mine = [change for change in plan.changes if change.target == item.kind]
        found += [Pending(label, change.key, change.after, commands, item.why) for change in mine]
    return tuple(found)


def activate(outcome: Outcome, cockpit: Cockpit) -> Outcome:
    """Make an applied plan effective where that can be done, confirm it there, or undo it where it is worse."""
    backend, course = outcome.course.backend, outcome.course
    if not isinstance(backend, OllamaBackend):
        return outcome
    outcome = replace(outcome, pending=pending_of(course, outcome.plan))
    environment = _environment(course, outcome.plan)
    try:
        if environment:
            outcome = _restart(outcome, environment, backend, cockpit)
        elif any(change.target == "config" for change in outcome.plan.changes):
            # The engine reads its file at each start, so its models only have to be loaded anew.
            for model in backend.holding():
                backend.api.unload(model.name)
    except VeloError as error:
        return _take_back(outcome, error.message, cockpit)
    if backend.version is None:
        return outcome
    cockpit(0.97, "seeing whether your own server works with it")
    running = environment if outcome.restart is not None else {}
    if fault := find_fault(backend, _name(course), running, course.facts.server, course.order.probe_server):
        return _take_back(outcome, fault, cockpit)
    if outcome.trial is None:
        return outcome
    try:
        confirmed = confirm(outcome, backend, cockpit)
    except VeloError as error:
        return _take_back(outcome, error.message, cockpit)
    if confirmed is None:
        return outcome
    outcome = replace(outcome, confirmed=confirmed)
    slower = _slower_than_before(outcome, confirmed)
    return outcome if slower is None else _take_back(outcome, slower, cockpit)


def _restart(
    outcome: Outcome, environment: Mapping[str, str | None], backend: OllamaBackend, cockpit: Cockpit
) -> Outcome:
    """Restart the server for its new environment; what is left for a person is pending."""
    course = outcome.course
    activation = course.places.activation
    assert activation is not None
    why = activation.lacking()
    if why is None:
        done = restart(activation, backend, cockpit)
        if done is not None:
            return replace(outcome, restart=done)
        why = "your server was busy, and nobody said yes to a restart"
    label, commands = course.places.label("environment"), " && ".join(activation.commands())
    pending = tuple(Pending(label, key, after, commands, why) for key, after in environment.items())
    return replace(outcome, pending=(*outcome.pending, *pending))


def _take_back(outcome: Outcome, why: str, cockpit: Cockpit) -> Outcome:
    """Undo the flight, the restart with it; ``why`` is what was wrong."""
    order = outcome.course.order
    undone = undo(outcome.flight, order.paths, cockpit, order.system)
    left = [f"{conflict.label} was left alone: {conflict.reason}" for conflict in undone.conflicts]
    left += [note for note in undone.notes if not note.startswith("restarted")]
    reason = "; ".join([f"undone by itself: {why}", *left])
    return replace(outcome, applied=False, applied_reason=reason, pending=())


def _name(course: Course) -> str:
    """The model that a flight has changed."""
    return with_suffix(course.model.name, BESIDE_SUFFIX) if course.order.beside else course.model.name


def confirm(outcome: Outcome, backend: OllamaBackend, cockpit: Cockpit) -> BenchResult | None:
    """The same measure on the user's server as it now runs; None where there was no time for it."""
    return _measure_own(outcome, backend, cockpit, "applied", "confirming on your own server", seed=1)


def measure_before(outcome: Outcome, cockpit: Cockpit) -> BenchResult | None:
    """The same measure on the user's server as it still runs: what a trial of another file cannot tell of it."""
    backend = outcome.course.backend
    assert isinstance(backend, OllamaBackend)
    # Other prompts than those of `confirm`, which must be in no cache then.
    return _measure_own(outcome, backend, cockpit, "before", "measuring your own server as it is", seed=2)


def _measure_own(
    outcome: Outcome, backend: OllamaBackend, cockpit: Cockpit, arm: str, text: str, *, seed: int
) -> BenchResult | None:
    course, trial = outcome.course, outcome.trial
    assert trial is not None
    name = course.model.name if arm == "before" else _name(course)
    cockpit(0.97, text)
    try:
        return run_bench(
            [Arm(arm, lambda: backend.user_server(name))],
            same_measure(load_workload(outcome.plan.profile.workload), trial.sizes),
            Budget(min(_CONFIRM_S, course.order.budget_s)),
            progress=lambda done, _text, left_s: cockpit(done, text, left_s),
            seed=seed,
        )
    except OverBudgetError:
        return None


def same_measure(workload: Workload, sizes: Sizes) -> Workload:
    """The workload in the sizes that a trial ended with: decode over a longer prompt is another figure."""
    return workload.model_copy(
        update={
            "prompt_tokens": sizes.prompt_tokens,
            "decode_tokens": sizes.decode_tokens,
            "aggregate_prompt_tokens": sizes.aggregate_prompt_tokens or workload.aggregate_prompt_tokens,
            "aggregate_decode_tokens": sizes.aggregate_decode_tokens or workload.aggregate_decode_tokens,
        }
    )


def _slower_than_before(outcome: Outcome, confirmed: BenchResult) -> str | None:
    """How much slower the server is than before, where that is proved and beyond what the profile accepts.

    Nothing is proved by answers to prompts of another size, nor by those of a twin.
    """
    trial, profile = outcome.before if outcome.course.twin else outcome.trial, outcome.plan.profile
    if trial is None or (confirmed.sizes.prompt_tokens, confirmed.sizes.decode_tokens) != (
        trial.sizes.prompt_tokens,
        trial.sizes.decode_tokens,
    ):
        return None
    before = next(arm for arm in ("before", "current", "default") if arm in trial.arms)
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


def undo(
    flight: str | None, paths: Paths | None = None, cockpit: Cockpit | None = None, system: System | None = None
) -> UndoResult:
    """Take back a flight, or the newest that changed anything; a server whose environment that was is restarted.

    Where it cannot be, the notes of the result say so, and what to type. Raises `VeloError` as `undo_flight` does.
    """
    paths = paths or user_paths()
    result = undo_flight(journal_of(paths), flight)
    try:
        activation = _activation_of(result, paths, system)
    except VeloError as error:
        return replace(result, notes=(f"not in effect yet: {error.message}",))
    if activation is None:
        return result
    return replace(result, notes=_restart_again(activation, cockpit or _Silent()))


def _restart_again(activation: Activation, cockpit: Cockpit) -> tuple[str, ...]:
    """Bring the old environment back to effect; what was done, or what is left to do."""
    why, backend = activation.lacking(), OllamaBackend()
    try:
        if why is None and (done := restart(activation, backend, cockpit)) is not None:
            return restart_notes(done)
        why = why or "your server is busy"
    except VeloError as error:
        why = error.message
    finally:
        backend.api.close()
    return (f"not in effect yet: {why}", *(f"type: {line}" for line in activation.commands()))


def restart_notes(done: Restart) -> tuple[str, ...]:
    """What a restart did, in words."""
    cut = f", and cut off {answers(done.cut)}" if done.cut else ""
    return (f"restarted your server{cut}",)


def _activation_of(result: UndoResult, paths: Paths, system: System | None) -> Activation | None:
    """How what was put back takes effect; None where nothing that needs a restart was."""
    details = result.flight.meta.details.get("restart") if result.flight is not None else None
    if isinstance(details, Mapping):
        address, places = details.get("activation"), details.get("places")
        named = isinstance(places, Sequence) and any(label in places for label in result.restored)
        return activation_from_address(address, system) if named and isinstance(address, Mapping) else None
    # A flight that did not say so wrote the environment of `velollm run`.
    if str(paths.ollama_env) in result.restored and reach_runner(paths.runner_state) is not None:
        return RunnerActivation(paths.runner_state, whichever=True)
    return None


class _Silent:
    """Nobody watches: who asks for an undo wants it done."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        """Nobody reads it."""

    def note(self, text: str) -> None:
        """Nobody reads it."""

    def ask(self, question: str) -> bool:
        return True


def flights(paths: Paths | None = None) -> list[Flight]:
    """Every flight so far, oldest first."""
    return journal_of(paths or user_paths()).read_flights()


def find_flight(flight_id: str, paths: Paths | None = None) -> Flight:
    """One flight. Raises `VeloError` where there is none of that id."""
    return journal_of(paths or user_paths()).read_flight(flight_id)


def journal_of(paths: Paths) -> Journal:
    """The journal under the user's data directory."""
    return Journal(paths.journal)
