"""What `velollm bench` measures: models, arms, workloads and depths, each combination as a comparison of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from velollm.autopilot.chart import chart
from velollm.autopilot.keeping import keep_result
from velollm.autopilot.made import note_of
from velollm.autopilot.meter import MachineMeter
from velollm.autopilot.order import Cockpit, Course, Order
from velollm.autopilot.trial import fit_together, fresh_log, make_room, why_as_it_runs
from velollm.backends.base import RunningServer
from velollm.backends.ollama import OllamaBackend
from velollm.bench.design import Design
from velollm.bench.history import Record
from velollm.bench.result import BenchResult
from velollm.bench.run import Arm, BrokenError, Budget, run_bench
from velollm.bench.workload import USERS, Workload, load_workload
from velollm.errors import UsageError, VeloError
from velollm.knobs import KNOBS, KnobValue, parse_knob_value

ARMS = ("default", "current", "tuned")
_PRECISION = 0.02
_QUICK_S = 25.0
_ROUND_TO = 256
_MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class Wanted:
    """What is to be measured. Empty or None: what the profile and the number of models suggest.

    ``arms``: names of `ARMS`, or files of knobs. ``workloads``: names, or files. ``levels``: users at once.
    ``rounds``: exactly so many; None lets the width of the intervals decide.
    """

    models: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    levels: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (0,)
    rounds: int | None = None


@dataclass(frozen=True)
class Series:
    """All comparisons of one `velollm bench`; ``courses``: one for each model. ``broken``: what ended it early.

    ``records``: the results as the history has them.
    """

    courses: tuple[Course, ...]
    records: tuple[Record, ...]
    results: tuple[BenchResult, ...]
    broken: VeloError | None = None


@dataclass(frozen=True)
class _Side:
    """One arm: its course, the knobs that its server runs with, and how it is started with others instead.

    ``log``: where its private server writes; None where it runs already.
    """

    name: str
    course: Course
    knobs: dict[str, KnobValue]
    start: Callable[[dict[str, KnobValue]], AbstractContextManager[RunningServer]]
    log: Path | None = None


@dataclass(frozen=True)
class _Measured:
    """One comparison, as it came out and as the history has it; ``broken``: what ended it early."""

    result: BenchResult
    record: Record
    broken: BrokenError | None


def measure(order: Order, wanted: Wanted, cockpit: Cockpit) -> Series:
    """Measure every combination of workload and depth; applies nothing.

    What breaks off is kept as far as it came, and ends the series.

    Raises:
        VeloError: nothing could be measured at all.
    """
    courses = [chart(replace(order, model=name), cockpit) for name in wanted.models or (order.model,)]
    workloads = [load_workload(name) for name in wanted.workloads or (courses[0].plan.profile.workload,)]
    as_it_runs = next((why for course in courses if (why := why_as_it_runs(course))), None)
    if as_it_runs:
        cockpit.note(f"Measuring the server as it runs: {as_it_runs}.")
        sides = [_side_as_it_runs(course, alone=len(courses) == 1) for course in courses]
    else:
        sides = _sides(courses, wanted, cockpit)
    cells = [(workload, depth) for workload in workloads for depth in wanted.depths]
    budget = Budget((_QUICK_S if order.quick else order.budget_s) / len(cells), quick=order.quick)
    found: list[_Measured] = []
    with ExitStack() as stack:
        for course in [] if as_it_runs else courses:
            stack.enter_context(make_room(course, cockpit))
        for workload, depth in cells:
            if len(cells) > 1:
                cockpit.note(f"{workload.name}, depth {depth:,} tokens:")
            found.append(_compare(sides, workload, depth, budget, wanted, cockpit, bool(as_it_runs)))
            if found[-1].broken is not None:
                break
    records, results = (item.record for item in found), (item.result for item in found)
    return Series(tuple(courses), tuple(records), tuple(results), found[-1].broken)


def _side_as_it_runs(course: Course, *, alone: bool) -> _Side:
    backend, model = course.backend, course.model
    if isinstance(backend, OllamaBackend):
        name = "current" if alone else model.name
        return _Side(name, course, dict(course.current or {}), lambda _: backend.user_server(model.name))
    log = course.order.paths.data / "trial" / "none.log"
    name = "default" if alone else model.name
    return _Side(name, course, {}, lambda knobs: backend.trial(model, knobs, course.facts, log=log))


def _sides(courses: Sequence[Course], wanted: Wanted, cockpit: Cockpit) -> list[_Side]:
    arms = wanted.arms or (ARMS if len(courses) == 1 else ARMS[:1])
    sides = []
    for course in courses:
        for arm in arms:
            label = arm if arm in ARMS else Path(arm).stem
            knobs = _knobs_of(course, arm)
            if knobs is None or (arm == "current" and not wanted.arms and knobs == dict(course.plan.defaults)):
                if wanted.arms:
                    cockpit.note(f"Nothing is set now for {course.model.name}, so there is no arm '{arm}'.")
                continue
            model = Path(course.model.name).stem if course.model.path else course.model.name
            name = label if len(courses) == 1 else model if len(arms) == 1 else f"{model} {label}"
            sides.append(_trial_side(name, course, knobs))
    if len({side.name for side in sides}) < len(sides) or not sides:
        raise UsageError("each arm and each model may be named once", "see `velollm bench --help`")
    return sides


def _trial_side(name: str, course: Course, knobs: dict[str, KnobValue]) -> _Side:
    log = fresh_log(course, name.replace("/", "-").replace(" ", "-"))
    return _Side(
        name, course, knobs, lambda chosen: course.backend.trial(course.model, chosen, course.facts, log=log), log
    )


def _knobs_of(course: Course, arm: str) -> dict[str, KnobValue] | None:
    """The knobs of an arm; None where nothing is set now and that is asked for."""
    if arm == "default":
        return dict(course.plan.defaults)
    if arm == "current":
        return None if course.current is None else dict(course.current)
    if arm == "tuned":
        return course.plan.knobs
    return {**course.plan.defaults, **read_arm(Path(arm), course.backend.knobs)}


def read_arm(path: Path, supported: frozenset[str]) -> dict[str, KnobValue]:
    """Knobs from a file of YAML or JSON, to be laid over the engine's default.

    Raises:
        UsageError: there is no such file, or it does not hold knobs that this backend has.
    """
    names = ", ".join(ARMS)
    try:
        with path.open("rb") as file:
            data = yaml.safe_load(file.read(_MAX_FILE_BYTES))
    except OSError as error:
        raise UsageError(f"there is no arm '{path}': {error.strerror}", f"arms: {names}, or a file of knobs") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the arm {path} is no YAML or JSON", "write one `knob: value` a line") from error
    if not isinstance(data, dict) or not data:
        raise UsageError(f"the arm {path} holds no knobs", "write one `knob: value` a line, for example `threads: 4`")
    knobs: dict[str, KnobValue] = {}
    for name, value in data.items():
        if name not in supported:
            known = ", ".join(knob for knob in KNOBS if knob in supported)
            raise UsageError(f"the arm {path} has '{name}', which is no knob of this backend", f"its knobs: {known}")
        try:
            # YAML reads on and off as truth values.
            text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
            knobs[name] = parse_knob_value(name, text)
        except ValueError as error:
            raise UsageError(f"the arm {path}: {error}", "`velollm explain KNOB` tells a knob's values") from error
    return knobs


def _compare(
    sides: Sequence[_Side],
    workload: Workload,
    depth: int,
    budget: Budget,
    wanted: Wanted,
    cockpit: Cockpit,
    as_it_runs: bool,
) -> _Measured:
    knobs = {side.name: side.knobs if as_it_runs else _with_room(side, workload, depth) for side in sides}
    contexts = [c for chosen in knobs.values() if isinstance(c := chosen.get("context_tokens"), int)]
    names = list(knobs)
    metric = sides[0].course.plan.profile.metric
    levels = tuple(sorted({n for n in wanted.levels if n > 1} | ({USERS} if metric.endswith(f"_{USERS}") else set())))
    # A server that is not started anew has the prompts of a first visit in its cache at the second.
    control = not as_it_runs and not budget.quick
    copies = [*sides, sides[0]] if control else list(sides)
    alike = len({side.course.model.path or side.course.model.name for side in sides}) == 1
    design = Design(
        levels=levels,
        control=control,
        precision=None if wanted.rounds is not None or budget.quick else _PRECISION,
        rounds=wanted.rounds,
        whole=not budget.quick,
        depth_tokens=depth,
    )

    def arm(side: _Side) -> Arm:
        return Arm(side.name, lambda: side.start(knobs[side.name]))

    def run() -> BenchResult:
        return run_bench(
            [arm(side) for side in sides],
            workload,
            budget,
            together=as_it_runs or (alike and fit_together(sides[0].course.facts, [knobs[s.name] for s in copies])),
            progress=cockpit,
            default=names[0],
            tuned="tuned" if "tuned" in names else names[-1] if len(names) > 1 else "tuned",
            context_tokens=min(contexts, default=None),
            # Other prompts each time: a server that goes on running still has those of an earlier run in its cache.
            seed=secrets.randbelow(1 << 20) if as_it_runs else 0,
            design=design,
            machine=MachineMeter(own_servers=not as_it_runs),
        )

    broken: BrokenError | None = None
    try:
        result = run()
    except BrokenError as error:
        broken, result = error, error.partial
    notes = [note for side in sides for note in note_of(side.course.facts.model)]
    result = replace(result, notes=(*dict.fromkeys(notes), *result.notes))
    courses = {side.name: side.course for side in sides}
    record = keep_result(sides[0].course, result, knobs, cockpit, log=sides[0].log, courses=courses)
    return _Measured(result, record, broken)


def _with_room(side: _Side, workload: Workload, depth: int) -> dict[str, KnobValue]:
    """The arm's knobs with a context that holds a deep conversation.

    Raises:
        UsageError: the model was not trained for so much.
    """
    knobs = dict(side.knobs)
    if not depth:
        return knobs
    # A quarter more than is asked for, as the bench leaves a quarter of the context free.
    needed = (depth + workload.prompt_tokens + workload.decode_tokens) * 4 // 3
    needed += -needed % _ROUND_TO
    trained = side.course.facts.model.context_train if side.course.facts.model else None
    if trained is not None and trained < depth + workload.decode_tokens:
        raise UsageError(
            f"a depth of {depth:,} tokens is too much for {side.course.model.name}: it was trained for {trained:,}",
            "choose a smaller --depth",
        )
    context = knobs.get("context_tokens")
    if not isinstance(context, int) or context < needed:
        knobs["context_tokens"] = min(needed, trained) if trained is not None else needed
    return knobs
