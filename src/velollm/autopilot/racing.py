"""The race around a plan: over the same file, on the cheapest engine that tells the truth."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from velollm.autopilot.aftermath import Raced, Trials
from velollm.autopilot.drafting import drafts_for
from velollm.autopilot.order import Cockpit, Course
from velollm.autopilot.trial import fit_together, free_bytes, fresh_log, make_room
from velollm.backends.base import Backend, RunningServer
from velollm.backends.embedded import EmbeddedBackend
from velollm.backends.llamacpp import LlamaCppBackend
from velollm.backends.ollama import OllamaBackend
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.kept import identity
from velollm.facts import Facts, ModelFacts
from velollm.knobs import DRAFT_KINDS, Knobs, KnobValue
from velollm.models.gguf import model_facts, read_gguf
from velollm.tune.candidates import Draft, Ground
from velollm.tune.heat import Race
from velollm.tune.objective import Objective, objective_of
from velollm.tune.race import run_race
from velollm.tune.record import KeptRace, Subject, find_race, keep_race, machine_of
from velollm.tune.track import Track

_MEMORY_SHARE = 0.9
_VERSION_S = 10.0


@dataclass(frozen=True)
class RaceWish:
    """What a race is to look at. ``knobs``: only these; ``lossy``: also what can change answers; ``drafts``: models
    to guess with; ``resume``: go on with an unfinished one.
    """

    knobs: frozenset[str] | None = None
    lossy: bool = False
    drafts: tuple[Path, ...] = ()
    resume: bool = False


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
    drafts, notes = drafts_for(course, wish.drafts)
    trials = Trials(course, engine, budget_s, lossy=wish.lossy and wish.knobs is None)
    keeper = _Keeper(course)
    with make_room(course, cockpit), _track(course, engine, trials.race_s) as track:
        start = Race(base := starting_point(course), base)
        ground = _ground(course, wish, engine, drafts)
        objective = _objective(course)
        race = run_race(kept or start, ground, track, objective, progress=cockpit, keep=keeper)
    keeper(race)
    raced = Raced(race, engine_of(engine), notes=(*notes, *trials.notes, *keeper.notes))
    return raced if race.interrupted else trials.run(raced, cockpit)


class _Keeper:
    """Keeps each step of a race; where that cannot be written, ``notes`` say so once."""

    def __init__(self, course: Course) -> None:
        self._data, self._subject = course.order.paths.data, subject_of(course)
        self.notes: tuple[str, ...] = ()

    def __call__(self, race: Race) -> None:
        if self._subject is None or self.notes:
            return
        try:
            keep_race(self._data, self._subject, race, None)
        except VeloError as error:
            self.notes = (f"the race is not kept: {error.message}",)


def _objective(course: Course) -> Objective:
    profile = course.plan.profile
    return objective_of(profile, load_workload(profile.workload))


def _track(course: Course, engine: Backend, budget_s: float) -> Track:
    base, facts = starting_point(course), course.facts

    def start(name: str, knobs: Knobs) -> AbstractContextManager[RunningServer]:
        return engine.trial(course.model, knobs, facts, log=fresh_log(course, f"race-{name}"))

    context = base.get("context_tokens")
    return Track(
        start,
        load_workload(course.plan.profile.workload),
        users=_objective(course).users,
        budget_s=budget_s,
        context_tokens=context if isinstance(context, int) else None,
        side_by_side=lambda count: fit_together(facts, [base] * count),
    )


def _ground(course: Course, wish: RaceWish, engine: Backend, drafts: Sequence[Draft]) -> Ground:
    facts, plan = course.facts, course.plan
    beside = {draft.path: model_facts(read_gguf(Path(draft.path)), draft.path) for draft in drafts}

    @cache
    def fits(items: tuple[tuple[str, KnobValue], ...]) -> bool:
        # Candidates are listed again for each group, to share out the time.
        knobs = dict(items)
        return has_room(facts, knobs, beside.get(str(knobs.get("draft_model"))))

    return Ground(
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


def starting_point(course: Course) -> dict[str, KnobValue]:
    """The plan, without guesses that nobody has asked for: those have to win."""
    knobs = course.plan.knobs
    if "speculation" in knobs and "speculation" not in course.plan.pins:
        knobs |= {"speculation": "none"}
    return knobs


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
