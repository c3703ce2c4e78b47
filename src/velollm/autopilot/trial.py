"""The private trial: the plan against the engine's default and what is set now, and what law 4 makes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from velollm.autopilot.keeping import keep_result
from velollm.autopilot.made import note_of
from velollm.autopilot.meter import MachineMeter
from velollm.autopilot.order import Cockpit, Course
from velollm.backends.base import Backend, ModelRef
from velollm.backends.ollama import OllamaBackend, uses_gpus
from velollm.backends.stamp import engine_stamp
from velollm.bench.conditions import Machine
from velollm.bench.design import FLIGHT, Design
from velollm.bench.result import BenchResult
from velollm.bench.run import Arm, BenchProgress, Budget, OverBudgetError, run_bench
from velollm.bench.workload import Workload, load_workload
from velollm.config import ensure_dir
from velollm.errors import VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.kept import keep_measured, uncorrected
from velollm.facts import Facts, MemoryFacts
from velollm.knobs import Knobs
from velollm.models.memory import estimate_total_bytes
from velollm.plan import Plan, without_speed_knobs
from velollm.tune.keep import decide, decide_raced

_SECOND_TRIAL_SHARE = 0.25
_SHORTEST_TRIAL_S = 20.0
# Servers may be up side by side only where this share of the free memory holds them all.
_MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Trial:
    """What a trial left: the plan as it was measured last, whether it may be kept, and why."""

    plan: Plan
    result: BenchResult
    keep: bool
    reason: str


def compare(course: Course, plan: Plan, cockpit: Cockpit, budget_s: float, depth_tokens: int = 0) -> BenchResult:
    """Measure the plan against the engine's default, and against what is set now where that is something else.

    ``depth_tokens`` of text are read before each prompt, as in a long conversation.
    """
    arms = {"default": dict(plan.defaults)}
    if course.current is not None and dict(course.current) != arms["default"]:
        arms["current"] = dict(course.current)
    arms["tuned"] = plan.knobs
    result = run_arms(
        course,
        arms,
        load_workload(plan.profile.workload),
        Budget(budget_s, quick=course.order.quick),
        design=replace(FLIGHT, depth_tokens=depth_tokens),
        progress=cockpit,
        machine=MachineMeter(),
    )
    result = replace(result, notes=(*note_of(course.facts.model), *result.notes))
    keep_result(course, result, arms, cockpit, log=_log_path(course, "default"))
    for name, knobs in arms.items():
        _keep_memory(course, knobs, _log_path(course, name))
    return result


def run_arms(
    course: Course,
    arms: Mapping[str, Knobs],
    workload: Workload,
    budget: Budget,
    *,
    design: Design,
    progress: BenchProgress,
    engine: Backend | None = None,
    logs: str = "",
    machine: Machine | None = None,
    files: Mapping[str, tuple[ModelRef, Facts]] | None = None,
) -> BenchResult:
    """Measure settings of the course's model on private servers, side by side where they fit.

    ``engine``: what runs them, the course's own backend where it is None. ``logs`` begins the names of their logs.
    ``files``: arms that run another, smaller file of the model, with the facts of that.
    """
    backend = engine or course.backend
    contexts = [c for knobs in arms.values() if isinstance(c := knobs.get("context_tokens"), int)]

    def arm(name: str, knobs: Knobs) -> Arm:
        log = fresh_log(course, f"{logs}{name}")
        model, facts = (files or {}).get(name, (course.model, course.facts))
        return Arm(name, lambda: backend.trial(model, knobs, facts, log=log))

    return run_bench(
        [arm(name, knobs) for name, knobs in arms.items()],
        workload,
        budget,
        together=fit_together(course.facts, list(arms.values())),
        progress=progress,
        context_tokens=min(contexts, default=None),  # what is asked must fit the smallest
        design=design,
        machine=machine,
    )


def baselines_of(course: Course) -> dict[str, Knobs]:
    """What a plan must not be slower than, by arm: the engine's default, and what is set now."""
    found = {"default": course.plan.defaults}
    return found if course.current is None else {**found, "current": course.current}


def why_as_it_runs(course: Course) -> str | None:
    """Why a comparison can only measure the server as it runs; None where private servers can be started."""
    backend = course.backend
    if not backend.knobs:
        return f"the server at {course.order.url} has no knobs that VeloLLM could turn"
    return backend.untriable(course.model) if isinstance(backend, OllamaBackend) else None


def _keep_memory(course: Course, knobs: Knobs, log: Path) -> None:
    """Remember what the engine allocated for this arm: later estimates of the model are corrected by it."""
    model = course.facts.model
    if model is None:
        return
    backend = course.backend
    stamp = engine_stamp(backend.name, backend.binary if isinstance(backend, OllamaBackend) else None)
    with contextlib.suppress(OSError, VeloError):
        text = log.read_text(encoding="utf-8", errors="replace")
        expected = calculate(uncorrected(model), knobs, course.facts)
        keep_measured(course.order.paths.data, model, course.model.path, expected, text, stamp)


def _log_path(course: Course, name: str) -> Path:
    return ensure_dir(course.order.paths.data / "trial") / f"{name}.log"


def fresh_log(course: Course, name: str) -> Path:
    """Where an engine of the latest trial writes its log; it stays, as errors point to it."""
    log = _log_path(course, name)
    with contextlib.suppress(OSError):
        log.unlink(missing_ok=True)
    return log


def free_bytes(memory: MemoryFacts | None) -> int | None:
    """Main memory that is available, within the limit of a container; None where it is unknown."""
    if memory is None or memory.available_bytes is None:
        return None
    if memory.limit_bytes is None:
        return memory.available_bytes
    return min(memory.available_bytes, memory.limit_bytes - (memory.limit_used_bytes or 0))


def fit_together(facts: Facts, arms: Sequence[Knobs]) -> bool:
    """May the servers be up side by side? Only without a GPU to share, and with memory to spare."""
    free, model = free_bytes(facts.memory), facts.model
    if facts.gpus or free is None or model is None:
        return False
    total = 0
    for knobs in arms:
        if (needed := estimate_total_bytes(model, knobs)) is None:
            return False
        total += needed
    return total < _MEMORY_SHARE * free


def try_plan(course: Course, cockpit: Cockpit, *, spent_s: float = 0.0, raced: bool = False) -> Trial:
    """Trials until law 4 is content: with everything, then, where speed was not proved, without the knobs for it.

    ``spent_s`` of the budget are gone. ``raced``: the plan holds what a race has found, so what that was about counts.
    """
    began_s = time.monotonic() - spent_s
    baselines = baselines_of(course)
    bare = without_speed_knobs(course.plan, course.facts, course.backend)
    total_s = course.order.budget_s
    second_s = total_s * _SECOND_TRIAL_SHARE if bare.knobs != course.plan.knobs and bare.changes else 0.0
    with make_room(course, cockpit):
        result = compare(course, course.plan, cockpit, max(total_s - spent_s - second_s, _SHORTEST_TRIAL_S))
        decision = decide(course.plan, result, baselines, course.order.pins)
        if raced and decision.action == "drop_speed":
            decision = decide_raced(course.plan, result, baselines)
        if decision.action != "drop_speed":
            trial = Trial(course.plan, result, decision.action == "keep", decision.reason)
            return _checked(course, trial, cockpit, began_s + total_s)
        if not bare.changes:
            return Trial(course.plan, result, False, decision.reason)
        cockpit.note(f"{decision.reason}: trying the plan without its knobs for speed.")
        left_s = max(total_s - (time.monotonic() - began_s), _SHORTEST_TRIAL_S)
        try:
            result = compare(course, bare, cockpit, left_s)
        except OverBudgetError:
            reason = f"{decision.reason}, and no time was left to try the rest of the plan"
            return Trial(course.plan, result, False, reason)
        decision = decide(bare, result, baselines, course.order.pins)
        trial = Trial(bare, result, decision.action == "keep", decision.reason)
        return _checked(course, trial, cockpit, began_s + total_s)


@contextlib.contextmanager
def make_room(course: Course, cockpit: Cockpit) -> Iterator[None]:
    """While the user's own server holds models that leave a trial too little room, they are out of memory.

    Afterwards they are loaded again, with the keep-alive that they had left.

    Raises:
        VeloError: they are in the way, and nobody said yes to unloading them.
    """
    backend = course.backend
    held = backend.holding() if isinstance(backend, OllamaBackend) else []
    held = [model for model in held if _in_the_way(model.size_bytes, model.size_vram_bytes, course.facts)]
    if not held:
        yield
        return
    assert isinstance(backend, OllamaBackend)
    names = ", ".join(model.name for model in held)
    if not cockpit.ask(f"Your server holds {names} in memory, which would spoil the trial. Unload and load it again?"):
        raise VeloError(
            f"the server holds {names} in memory, so a trial beside it would lie",
            "unload it (`ollama stop`), or say yes (--yes) to have it unloaded and loaded again",
        )
    for model in held:
        backend.api.unload(model.name)
    try:
        yield
    finally:
        for model in held:
            backend.api.load(model.name, {}, keep_alive=model.keep_alive_left_s())


def _in_the_way(size_bytes: int, vram_bytes: int, facts: Facts) -> bool:
    if facts.gpus:
        return vram_bytes > 0
    total = facts.memory.total_bytes if facts.memory else None
    return total is not None and size_bytes > total / 2


def _checked(course: Course, trial: Trial, cockpit: Cockpit, until_s: float) -> Trial:
    """What is set for a server is set for every model of it: the others must still load; as many as the time allows."""
    backend = course.backend
    if not trial.keep or not isinstance(backend, OllamaBackend):
        return trial
    settings = [s for s in backend.render(trial.plan.knobs, course.facts) if s.target in ("environment", "config")]
    if not settings:
        return trial
    if course.twin:
        cockpit.note("Whether your other models load with this environment was not tried: their files may not be read.")
        return trial
    cockpit(0.95, "checking that the other models still load")
    failed = backend.failing_models(
        course.model,
        settings,
        fresh_log(course, "others"),
        gpus=uses_gpus(course.facts),
        time_is_up=lambda: time.monotonic() > until_s,
    )
    if not failed:
        return trial
    return Trial(trial.plan, trial.result, False, f"with this environment another model would not load: {failed}")
