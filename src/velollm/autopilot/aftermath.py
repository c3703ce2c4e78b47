"""What a race's winner has to show besides: the price of its answers, smaller files, and a busy neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from velollm.autopilot.order import Cockpit, Course
from velollm.autopilot.pricing import Stand, measure_prices
from velollm.autopilot.quantized import measure_smaller, note_of_none, smaller_files
from velollm.autopilot.trial import make_room, run_arms
from velollm.backends.base import Backend
from velollm.bench.design import Design
from velollm.bench.run import Budget
from velollm.bench.stats import Ratio, compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.knobs import KNOBS, Knobs
from velollm.tune.heat import Race
from velollm.tune.keep import measured_metric
from velollm.tune.price import OtherFile, Price

_BUSY_SHARE = 0.18
_LEAST_BUSY_S, _MOST_BUSY_S = 8.0, 40.0
_STEADIER = 1.5
_PRICE_SHARE, _LEAST_PRICE_S = 0.15, 20.0
_FILES_SHARE, _LEAST_FILES_S = 0.35, 40.0
_BUSY_DESIGN = Design(levels=())


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


class Trials:
    """What comes after a race of this course, and the time that is kept back for it.

    ``lossy``: answers may change, and nobody has named the knobs; a file is none, so smaller ones are tried too.
    """

    def __init__(self, course: Course, engine: Backend, budget_s: float, *, lossy: bool) -> None:
        self._course, self._engine, self._budget_s = course, engine, budget_s
        self._files = smaller_files(course) if lossy else []
        hint = note_of_none(course) if lossy and not self._files else None
        self.notes = () if hint is None else (hint,)

    @property
    def _busy_s(self) -> float:
        """Without GPUs a neighbour is part of the test."""
        if self._course.facts.gpus:
            return 0.0
        return min(max(_BUSY_SHARE * self._budget_s, _LEAST_BUSY_S), _MOST_BUSY_S, self._budget_s / 3)

    @property
    def _files_s(self) -> float:
        return min(max(_FILES_SHARE * self._budget_s, _LEAST_FILES_S), self._budget_s / 2) if self._files else 0.0

    @property
    def race_s(self) -> float:
        """What is left for the race."""
        return self._budget_s - self._busy_s - self._files_s

    def run(self, raced: Raced, cockpit: Cockpit) -> Raced:
        """The race with what was found; on Ctrl-C as interrupted."""
        course, engine = self._course, self._engine
        try:
            if self._files:
                raced = _with_smaller(course, raced, self._files, engine, self._files_s, cockpit)
            if any(KNOBS[name].changes_answer for name in raced.race.changed):
                price_s = max(_PRICE_SHARE * self._budget_s, _LEAST_PRICE_S)
                raced = _priced(course, raced, engine, price_s, cockpit)
            return _beside_a_neighbour(course, raced, engine, self._busy_s, cockpit) if self._busy_s else raced
        except KeyboardInterrupt:
            return replace(raced, race=replace(raced.race, interrupted=True))


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
