"""The race around a plan: over the same file, on the cheapest engine that tells the truth."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from velollm.autopilot.drafting import drafts_for
from velollm.autopilot.order import Cockpit, Course
from velollm.autopilot.pricing import Stand, measure_prices
from velollm.autopilot.quantized import measure_smaller, note_of_none, smaller_files
from velollm.autopilot.trial import fit_together, free_bytes, fresh_log, make_room, run_arms
from velollm.backends.base import Backend, RunningServer
from velollm.backends.embedded import EmbeddedBackend
from velollm.backends.llamacpp import LlamaCppBackend
from velollm.backends.ollama import OllamaBackend
from velollm.bench.design import Design
from velollm.bench.run import Budget
from velollm.bench.stats import Ratio, compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.kept import identity
from velollm.facts import Facts, ModelFacts
from velollm.knobs import DRAFT_KINDS, KNOBS, Knobs, KnobValue
from velollm.models.gguf import model_facts, read_gguf
from velollm.tune.candidates import Ground
from velollm.tune.heat import Race
from velollm.tune.keep import measured_metric
from velollm.tune.objective import objective_of
from velollm.tune.price import OtherFile, Price
from velollm.tune.race import run_race
from velollm.tune.record import KeptRace, Subject, find_race, keep_race, machine_of
from velollm.tune.track import Track

_MEMORY_SHARE = 0.9
_BUSY_SHARE = 0.18
_LEAST_BUSY_S, _MOST_BUSY_S = 8.0, 40.0
_STEADIER = 1.5
_PRICE_SHARE, _LEAST_PRICE_S = 0.15, 20.0
_FILES_SHARE, _LEAST_FILES_S = 0.35, 40.0
_VERSION_S = 10.0
_BUSY_DESIGN = Design(levels=())


@dataclass(frozen=True)
class RaceWish:
    """What a race is to look at. ``knobs``: only these; ``lossy``: also what can change answers; ``drafts``: models
    to guess with; ``resume``: go on with an unfinished one.
    """

    knobs: frozenset[str] | None = None
    lossy: bool = False
    drafts: tuple[Path, ...] = ()
    resume: bool = False


@dataclass(frozen=True)
class Trade:
    """Two settings of which each is better at a time: alone (``idle``) and with one core busy (``busy``).

    The ratios are those of ``knobs`` to the winner's; above 1 is better.
    """

    knobs: Knobs
    idle: Ratio | None
    busy: Ratio


@dataclass(frozen=True)
class Raced:
    """A race and what came with it. ``holds``: with a neighbour busy the winner is not proved slower than the default.

    ``busy``: that ratio, None where it was not measured; ``trade``: what is steadier there; ``price``: what the answers
    pay, where something won that can change them; ``smaller``: what smaller files of the model would bring.
    """

    race: Race
    engine: str
    busy: Ratio | None = None
    trade: Trade | None = None
    price: Price | None = None
    smaller: tuple[OtherFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.busy is None or self.busy.verdict != "slower"


def subject_of(course: Course) -> Subject | None:
    """What a race of this course is kept under; None where the model's file cannot be told from others."""
    model = course.facts.model
    name = identity(model, course.model.path) if model is not None else None
    if name is None:
        return None
    return Subject(machine_of(course.facts), name, engine_of(course.backend), course.plan.profile.name)


def engine_of(backend: Backend) -> str:
    """An engine's build, as one line."""
    if isinstance(backend, LlamaCppBackend):
        return _llama_version(backend.binary)
    name = "xllamacpp" if isinstance(backend, EmbeddedBackend) else backend.name
    return f"{name} {backend.engine_version('') or 'unknown'}"


@cache
def _llama_version(binary: str) -> str:
    """What the program itself says; asked once, as a run asks for it several times."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "llama-server unknown"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("version:")]
    return f"llama-server {lines[0].removeprefix('version:').strip() if lines else 'unknown'}"


def cheap_backend(backend: Backend) -> Backend:
    """The engine that candidates are tried on: Ollama's own `llama-server`, where it is beside the program."""
    if not isinstance(backend, OllamaBackend) or backend.binary is None:
        return backend
    found = find_llama_server(Path(backend.binary))
    return backend if found is None else LlamaCppBackend(str(found))


def find_llama_server(ollama: Path) -> Path | None:
    """Where Ollama's packages keep the engine: `lib/ollama` beside the program's directory, or the directory itself."""
    here = ollama.resolve().parent
    for folder in (here.parent / "lib" / "ollama", here / "lib" / "ollama", here):
        for name in ("llama-server", "llama-server.exe"):
            if (folder / name).is_file():
                return folder / name
    return None


def race_around(course: Course, wish: RaceWish, cockpit: Cockpit, budget_s: float, kept: Race | None = None) -> Raced:
    """Race candidates around the course's plan within the budget; go on with ``kept`` where it is given.

    Raises:
        VeloError: the plan itself does not run here.
    """
    engine = cheap_backend(course.backend)
    plan, facts = course.plan, course.facts
    base = starting_point(course)
    workload = load_workload(plan.profile.workload)
    objective = objective_of(plan.profile, workload)
    subject = subject_of(course)
    drafts, notes = drafts_for(course, wish.drafts)

    beside = {draft.path: model_facts(read_gguf(Path(draft.path)), draft.path) for draft in drafts}

    @cache
    def fits(items: tuple[tuple[str, KnobValue], ...]) -> bool:
        # Candidates are listed again for each group, to share out the time.
        knobs = dict(items)
        return has_room(facts, knobs, beside.get(str(knobs.get("draft_model"))))

    ground = Ground(
        facts,
        plan.profile,
        course.backend.knobs & engine.knobs,
        fixed=frozenset(plan.pins),
        asked=wish.knobs,
        drafts=tuple(drafts),
        openmp=isinstance(engine, EmbeddedBackend) or facts.os == "windows",
        lossy=wish.lossy,
        fits=lambda knobs: fits(tuple(knobs.items())),
    )
    context = _context_of(base)
    # Without GPUs a neighbour is part of the test; its time is kept back.
    busy_s = 0.0 if facts.gpus else min(max(_BUSY_SHARE * budget_s, _LEAST_BUSY_S), _MOST_BUSY_S, budget_s / 3)

    # A file is no knob, so one who names the knobs does not ask for it.
    files = smaller_files(course) if wish.lossy and wish.knobs is None else []
    files_s = min(max(_FILES_SHARE * budget_s, _LEAST_FILES_S), budget_s / 2) if files else 0.0
    if wish.lossy and wish.knobs is None and not files and (hint := note_of_none(course)):
        notes = (*notes, hint)

    def start(name: str, knobs: Knobs) -> AbstractContextManager[RunningServer]:
        return engine.trial(course.model, knobs, facts, log=fresh_log(course, f"race-{name}"))

    unkept: list[str] = []

    def keep(race: Race) -> None:
        if subject is None or unkept:
            return
        try:
            keep_race(course.order.paths.data, subject, race, None)
        except VeloError as error:
            unkept.append(f"the race is not kept: {error.message}")

    with (
        make_room(course, cockpit),
        Track(
            start,
            workload,
            users=objective.users,
            budget_s=budget_s - busy_s - files_s,
            context_tokens=context,
            side_by_side=lambda count: fit_together(facts, [base] * count),
        ) as track,
    ):
        race = run_race(kept or Race(base, base), ground, track, objective, progress=cockpit, keep=keep)
    keep(race)
    raced = Raced(race, engine_of(engine), notes=(*notes, *unkept))
    if race.interrupted:
        return raced
    try:
        if files:
            raced = _with_smaller(course, raced, files, engine, files_s, cockpit)
        if any(KNOBS[name].changes_answer for name in race.changed):
            raced = _priced(course, raced, engine, max(_PRICE_SHARE * budget_s, _LEAST_PRICE_S), cockpit)
        return _beside_a_neighbour(course, raced, engine, busy_s, cockpit) if busy_s else raced
    except KeyboardInterrupt:
        return replace(raced, race=replace(race, interrupted=True))


def starting_point(course: Course) -> dict[str, KnobValue]:
    """The plan, without guesses that nobody has asked for: those have to win."""
    knobs = course.plan.knobs
    if "speculation" in knobs and "speculation" not in course.plan.pins:
        knobs |= {"speculation": "none"}
    return knobs


def _context_of(knobs: Knobs) -> int | None:
    context = knobs.get("context_tokens")
    return context if isinstance(context, int) else None


def kept_race(course: Course) -> KeptRace | None:
    """The race that was kept for this course."""
    subject = subject_of(course)
    return None if subject is None else find_race(course.order.paths.data, subject)


def has_room(facts: Facts, knobs: Knobs, draft: ModelFacts | None = None) -> bool:
    """Would a server with these knobs find memory, its draft's cache and buffers too?

    Unknown counts as yes: the engine itself then says. ``draft``: the one that the knobs name, where it is read.
    """
    model, free = facts.model, free_bytes(facts.memory)
    if model is None or free is None:
        return True
    try:
        needed = calculate(model, {**knobs, "load_mode": "none"}, facts, draft=draft if _drafts(knobs) else None)
    except VeloError:
        return True
    room = free + sum(gpu.vram_bytes or 0 for gpu in facts.gpus or () if not gpu.unified_memory)
    return needed is None or needed.total_bytes <= _MEMORY_SHARE * room


def _drafts(knobs: Knobs) -> bool:
    return knobs.get("speculation") in DRAFT_KINDS


def _priced(course: Course, raced: Raced, engine: Backend, budget_s: float, cockpit: Cockpit) -> Raced:
    """What the winner's answers pay for what can change them, against the same setting without it."""
    winner = dict(raced.race.knobs)
    exact = winner | {n: raced.race.start.get(n) for n in raced.race.changed if KNOBS[n].changes_answer}
    stands = [Stand(name, course.model, k, course.facts) for name, k in (("exact", exact), ("lossy", winner))]
    try:
        (price,) = measure_prices(course, engine, stands, budget_s, cockpit)
    except VeloError as error:
        return replace(raced, notes=(*raced.notes, f"the price could not be measured: {error.message}"))
    return replace(raced, price=price)


def _with_smaller(
    course: Course, raced: Raced, files: Sequence[Stand], engine: Backend, budget_s: float, cockpit: Cockpit
) -> Raced:
    """What smaller files of the model would bring, with the knobs that won."""
    try:
        with make_room(course, cockpit):
            found = measure_smaller(course, engine, files, raced.race.knobs, budget_s, cockpit)
    except VeloError as error:
        return replace(raced, notes=(*raced.notes, f"smaller files of the model were not measured: {error.message}"))
    return replace(raced, smaller=tuple(found))


def _beside_a_neighbour(course: Course, raced: Raced, engine: Backend, budget_s: float, cockpit: Cockpit) -> Raced:
    """The winner with one core busy, against the default, and against fewer threads."""
    profile = course.plan.profile
    winner, default = raced.race.knobs, course.plan.defaults
    workload = load_workload(profile.workload).model_copy(update={"beside": "busy process", "turns": 1})
    arms: dict[str, Knobs] = {"default": default, "tuned": winner}
    threads = winner.get("threads")
    if isinstance(threads, int) and threads > 1 and "threads" not in course.plan.pins:
        arms["steady"] = {**winner, "threads": threads - 1}

    def progress(done: float, text: str, left_s: float) -> None:
        cockpit(done, f"with one core busy: {text}", left_s)

    try:
        budget = Budget(budget_s, quick=True)
        result = run_arms(
            course, arms, workload, budget, design=_BUSY_DESIGN, progress=progress, engine=engine, logs="busy-"
        )
    except VeloError as error:
        return replace(raced, notes=(*raced.notes, f"not measured with a neighbour: {error.message}"))
    metric = measured_metric(profile.objective, result.runs)
    busy = compare_arms(result.runs, "default", "tuned", metric)
    trade = None
    if "steady" in arms:
        steady = compare_arms(result.runs, "tuned", "steady", metric)
        if steady.verdict == "faster" and (steady.estimate or 0) >= _STEADIER:
            trade = Trade({"threads": arms["steady"]["threads"]}, _idle_ratio(raced, arms["steady"]), steady)
    return replace(raced, busy=busy, trade=trade)


def _idle_ratio(raced: Raced, steady: Knobs) -> Ratio | None:
    """What the race itself saw of these threads; None where it saw nothing of them."""
    tried = next((t for t in raced.race.tried if dict(t.values) == {"threads": steady["threads"]}), None)
    if tried is None or tried.ratio is None:
        return None
    return Ratio(tried.ratio, tried.low, tried.high, "no difference", tried.rounds)
