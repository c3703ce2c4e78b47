"""`velollm tune`, and what `velollm optimize` does of it: race, confirm, keep the result."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from velollm.autopilot.aftermath import Raced
from velollm.autopilot.chart import chart
from velollm.autopilot.order import Cockpit, Course, Order
from velollm.autopilot.racing import RaceWish, kept_race, race_around, starting_point, subject_of
from velollm.autopilot.trial import baselines_of, compare, make_room, why_as_it_runs
from velollm.bench.result import BenchResult
from velollm.bench.run import BrokenError
from velollm.bench.stats import compare_arms
from velollm.errors import EngineError, UsageError, VeloError
from velollm.knobs import KNOBS, Knobs
from velollm.plan import Plan, with_raced
from velollm.tune.heat import Race, take_back_all
from velollm.tune.keep import OBJECTIVE_METRICS, Decision, decide_raced
from velollm.tune.record import Confirmed, KeptRace, keep_race, last_race, what_changed
from velollm.tune.track import reason_of

_RACE_SHARE = 0.62
_DEEP_SHARE = 0.3
_LEAST_CONFIRM_S = 20.0
_LEAST_DEPTH, _MOST_DEPTH = 512, 8192
LEAST_FLIGHT_S = 120.0
"""Below it a flight's time is all needed for its trial."""
FLIGHT_RACE_SHARE = 0.45


@dataclass(frozen=True)
class Tuning:
    """How tuning ended. ``plan``: with what may be kept. ``raced``: None where a kept race was taken over.

    ``short`` and ``deep``: the winner against the default, without and with a long text before each prompt.
    ``advised``: it is worth setting, against what is set now.
    """

    course: Course
    plan: Plan
    race: Race
    raced: Raced | None
    kept: KeptRace | None
    short: BenchResult | None = None
    deep: BenchResult | None = None
    reason: str = ""
    advised: bool = False


def tune(order: Order, wish: RaceWish, cockpit: Cockpit) -> Tuning:
    """Find the fastest settings for a model, confirm them at short and long depth, and keep what was found.

    Raises:
        VeloError: no private server can be started for it here.
    """
    course = chart(order, cockpit)
    if why := why_as_it_runs(course):
        raise VeloError(f"nothing can be raced: {why}", "`velollm bench` measures the server as it runs")
    for name in wish.knobs or ():
        if name not in KNOBS:
            raise UsageError(f"there is no knob '{name}'", f"knobs: {', '.join(KNOBS)}")
    earlier = kept_race(course)
    if wish.resume and earlier is not None and earlier.is_final:
        cockpit.note(f"The race of {earlier.taken_at} is complete and still holds.")
        return _taken_over(course, earlier)
    _say_what_changed(course, earlier, cockpit)
    began_s = time.monotonic()
    going_on = _unfinished(course, earlier, cockpit) if wish.resume and earlier is not None else None
    raced = race_around(course, wish, cockpit, order.budget_s * _RACE_SHARE, going_on)
    for note in raced.notes:
        cockpit.note(f"{note[:1].upper()}{note[1:]}.")
    tuning = Tuning(course, _with(course, raced.race.changed, _reason(raced)).plan, raced.race, raced, None)
    if raced.race.interrupted:
        return _interrupted(tuning)

    def left_s() -> float:
        return max(order.budget_s - (time.monotonic() - began_s), _LEAST_CONFIRM_S)

    try:
        try:
            return _confirmed(tuning, cockpit, left_s())
        except (EngineError, BrokenError) as error:
            return _confirmed(_fallen_back(tuning, error, cockpit), cockpit, left_s())
    except KeyboardInterrupt:
        return _interrupted(tuning)


def _interrupted(tuning: Tuning) -> Tuning:
    race = replace(tuning.race, interrupted=True)
    return replace(tuning, race=race, reason="interrupted: this led, and is not confirmed; --resume goes on")


def _fallen_back(tuning: Tuning, error: EngineError | BrokenError, cockpit: Cockpit) -> Tuning:
    """What won has failed when it was to be confirmed, so it is out, and the start is confirmed in its place.

    Raises:
        VeloError: nothing had won.
    """
    assert tuning.raced is not None
    why = f"failed when it was to be confirmed: {reason_of(error)}"
    race = take_back_all(tuning.race, f"it won, and {why}")
    if race is tuning.race:
        raise error
    cockpit.note(f"What won {why}. Going back to where the race began.")
    raced = replace(tuning.raced, race=race, busy=None, trade=None, price=None, smaller=())
    return replace(tuning, plan=_start_of(tuning.course).plan, race=race, raced=raced)


def _unfinished(course: Course, earlier: KeptRace, cockpit: Cockpit) -> Race | None:
    """The race to go on with; None where it began from other settings than the plan has now."""
    base, start = starting_point(course), earlier.race.start
    other = [name for name in {**start, **base} if start.get(name) != base.get(name)]
    if not other:
        return replace(earlier.race, interrupted=False)
    differences = ", ".join(f"{name} was {start.get(name)} and is {base.get(name)}" for name in other)
    cockpit.note(f"The race of {earlier.taken_at} began from another plan: {differences}. Racing anew.")
    return None


def _confirmed(tuning: Tuning, cockpit: Cockpit, left_s: float) -> Tuning:
    """The winner against the default and what is set now, on the backend itself."""
    course, plan = tuning.course, tuning.plan
    baselines = baselines_of(course)
    with make_room(course, cockpit):
        short = compare(course, plan, cockpit, left_s * (1 - _DEEP_SHARE))
        deep, cut = _measure_deep(course, plan, short, cockpit, left_s * _DEEP_SHARE)
    decision = decide_raced(plan, short, baselines)
    if decision.action == "keep" and deep is not None:
        at_depth = decide_raced(plan, deep, baselines)
        if at_depth.action == "leave":
            decision = Decision("leave", f"in a conversation of {deep.depth_tokens:,} tokens {at_depth.reason}")
    assert tuning.raced is not None
    if decision.action == "keep" and not tuning.raced.holds:
        decision = Decision("leave", "with one core busy it is slower than the default: a trade, yours to make")
    keeps = decision.action == "keep"
    race = tuning.race if keeps else replace(tuning.race, knobs=dict(tuning.race.start))
    plan = plan if keeps else _start_of(course).plan
    kept = _keep(course, race, short, cockpit)
    advised = keeps and bool(plan.changes) and bool(race.changed)
    if cut:
        cockpit.note(cut)
    return replace(tuning, plan=plan, short=short, deep=deep, kept=kept, reason=decision.reason, advised=advised)


def _measure_deep(
    course: Course, plan: Plan, short: BenchResult, cockpit: Cockpit, budget_s: float
) -> tuple[BenchResult | None, str | None]:
    """The same with as long a text before each prompt as the time and the context allow."""
    contexts = [k.get("context_tokens") for k in (plan.defaults, plan.knobs)]
    room = min((c for c in contexts if isinstance(c, int)), default=0) // 2
    rate = short.summary("default")["prefill"].estimate or 0.0
    depth = min(room, _MOST_DEPTH, int(rate * budget_s * 0.4 / max(len(short.arms), 1)))
    depth -= depth % 128
    if depth < _LEAST_DEPTH:
        return None, "A long conversation was not measured: reading one takes more time than is left (--budget 10m)."
    try:
        return compare(course, plan, cockpit, budget_s, depth), None
    except VeloError as error:
        return None, f"A long conversation was not measured: {error.message}."


def _keep(course: Course, race: Race, short: BenchResult, cockpit: Cockpit) -> KeptRace | None:
    subject = subject_of(course)
    if subject is None:
        return None
    metric = OBJECTIVE_METRICS[course.plan.profile.objective]
    found = compare_arms(short.runs, "default", "tuned", metric)
    confirmed = Confirmed(metric, found.estimate, found.low, found.high, found.verdict)
    try:
        return keep_race(course.order.paths.data, subject, race, confirmed, acceptance=short.acceptance("tuned"))
    except VeloError as error:
        cockpit.note(f"The race is not kept: {error.message} ({error.hint}).")
        return None


def remember(course: Course, raced: Raced, result: BenchResult, proved: bool, cockpit: Cockpit) -> None:
    """Keep a flight's race: with what it found, or, where that was not proved, with where it started."""
    _keep(course, raced.race if proved else replace(raced.race, knobs=dict(raced.race.start)), result, cockpit)


def give_up(course: Course, reason: str, cockpit: Cockpit) -> None:
    """What a kept race has found does not run in a flight's trial: no other flight is to take it over."""
    kept = kept_race(course)
    if kept is None or kept.confirmed is None:
        return
    race = take_back_all(kept.race, f"it won, and failed in a later trial: {reason}")
    try:
        keep_race(course.order.paths.data, kept.subject, replace(race, knobs=dict(race.start)), kept.confirmed)
    except VeloError as error:
        cockpit.note(f"The race is not kept: {error.message} ({error.hint}).")


def raced_course(course: Course, cockpit: Cockpit, budget_s: float) -> tuple[Course, Raced | None]:
    """A flight's course with what a race has found: one that was kept, else one that is run now where time allows."""
    earlier = kept_race(course)
    if earlier is not None and earlier.is_final:
        cockpit.note(f"Taking over the race of {earlier.taken_at} for this model, engine and machine.")
        return _with(course, earlier.knobs, _reason_of_kept(earlier)), None
    if budget_s < LEAST_FLIGHT_S or why_as_it_runs(course):
        return course, None
    _say_what_changed(course, earlier, cockpit)
    raced = race_around(course, RaceWish(), cockpit, budget_s * FLIGHT_RACE_SHARE)
    if raced.race.interrupted:
        raise KeyboardInterrupt
    if not raced.holds:
        cockpit.note("What won alone is slower with one core busy, so it is left out: `velollm tune` shows both.")
        return _start_of(course), raced
    return _with(course, raced.race.changed, _reason(raced)), raced


def _with(course: Course, values: Knobs, reason: str) -> Course:
    """The course with what won, and without guesses that rules would make: those have to win."""
    plan = course.plan
    unwon = {name: value for name, value in starting_point(course).items() if plan.knobs.get(name) != value}
    for found, why in ((unwon, "no guess has won the race"), (values, reason)):
        plan = with_raced(plan, found, why, course.facts, course.backend)
    return replace(course, plan=plan)


def _start_of(course: Course) -> Course:
    """Where the race began: what is left where nothing has won."""
    return _with(course, {}, "")


def _reason(raced: Raced) -> str:
    return f"won the race on {raced.engine}"


def _reason_of_kept(kept: KeptRace) -> str:
    return f"won the race of {kept.taken_at[:10]}"


def _taken_over(course: Course, kept: KeptRace) -> Tuning:
    plan = _with(course, kept.knobs, _reason_of_kept(kept)).plan
    assert kept.confirmed is not None
    reason = f"{kept.confirmed.metric}: {kept.confirmed.verdict} than the default when it was confirmed"
    return Tuning(course, plan, kept.race, None, kept, reason=reason, advised=bool(kept.knobs) and bool(plan.changes))


def _say_what_changed(course: Course, kept: KeptRace | None, cockpit: Cockpit) -> None:
    """A kept race of the same model that no longer holds is named, with the reason."""
    subject = subject_of(course)
    if kept is not None or subject is None:
        return
    last = last_race(course.order.paths.data, subject.model, subject.profile)
    if last is not None and (why := what_changed(last.subject, subject)):
        cockpit.note(f"The race of {last.taken_at} no longer holds: {why}. Racing anew.")
