"""The race: group by group, challengers against the setting to beat, the worse ones out as soon as that is sure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from velollm.bench.run import balanced_order
from velollm.bench.samples import Sample
from velollm.errors import VeloError
from velollm.knobs import Knobs
from velollm.tune.candidates import Candidate, Ground, groups_of, list_candidates, refine
from velollm.tune.heat import (
    LEADER,
    SECOND_LOOK,
    Heat,
    Race,
    Runner,
    Tried,
    differences,
    may_win,
    middle,
    place_of,
    take_back,
    tried_as,
)
from velollm.tune.judge import Judgement, Noise, judge, promises
from velollm.tune.objective import Objective
from velollm.tune.track import reason_of

RaceProgress = Callable[[float, str, float], None]
"""Called with the share that is done (0 to 1), what is being done and what leads, and the seconds left."""

_CONTROL = "leader-control"
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 10
_START_SHARE = 0.4
_CONTROL_ROUNDS = 4
_WEIGHTS = {"speculation": 4.0, "threads": 3.0, "slots": 3.0, "placement": 3.0, "batch": 2.0, "flash_attention": 1.5}
_REFINE_WEIGHT = 2.0
_SECOND_LOOK_WEIGHT = 2.0
_LEAST_HEAT_S = 1.0
_MOST_FALLS = 2


class Course(Protocol):
    """Where servers run and are asked; `velollm.tune.track.Track` is one."""

    @property
    def left_s(self) -> float: ...

    @property
    def start_s(self) -> float: ...

    @property
    def block(self) -> int: ...

    def room(self, wanted: int) -> int: ...

    def enter(self, name: str, knobs: Knobs) -> None: ...

    def leave(self, name: str) -> None: ...

    def is_hopeless(self, name: str, other: str) -> bool: ...

    def next_rounds(self) -> tuple[int, ...]: ...

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]: ...


def run_race(
    race: Race,
    ground: Ground,
    course: Course,
    objective: Objective,
    *,
    progress: RaceProgress | None = None,
    keep: Callable[[Race], None] = lambda _: None,
) -> Race:
    """Go on with a race from where it is until all groups are done or the time is over; ``keep`` sees each step.

    A candidate that does not start, crashes or runs out of memory is out with its reason, also where it has won before
    it does so. Ctrl-C ends the race with what leads so far.

    Raises:
        VeloError: the start itself does not run.
    """
    racer = _Racer(race, ground, course, objective, progress)
    try:
        racer.start_leader()
        for group in racer.groups:
            if group not in racer.race.done:
                racer.run_group(group)
                keep(racer.race)
        racer.prove_again()
    except KeyboardInterrupt:
        racer.race = replace(racer.race, interrupted=True)
    return racer.race


class _FallenBackError(Exception):
    """What led fails, and what led before it leads again: what is being raced has lost its measure."""


class _Racer:
    def __init__(
        self, race: Race, ground: Ground, course: Course, objective: Objective, progress: RaceProgress | None
    ) -> None:
        self.race = race
        self.groups = groups_of(ground)
        self._ground = ground
        self._course = course
        self._objective = objective
        self._progress = progress
        self._noise = Noise() if race.noise is None else Noise.known(race.noise)
        self._total_s = max(course.left_s, 1e-9)
        self._knows_noise = race.noise is not None
        self._failures: dict[str, str] = {}
        self._falls = 0
        self._has_run = False

    def start_leader(self) -> None:
        """The setting to beat in a server of its own; where it does not start, the one that led before it.

        Raises:
            VeloError: the start itself does not, or, where it did once, does not any more.
        """
        while True:
            self._course.leave(LEADER)
            try:
                self._course.enter(LEADER, self.race.knobs)
                break
            except VeloError as error:
                if self._take_back(reason_of(error)):
                    continue
                self._falls += 1
                if not self._has_run or self._falls > _MOST_FALLS:
                    raise
        self._has_run = True

    def run_group(self, group: str) -> None:
        while True:
            with contextlib.suppress(_FallenBackError):
                self._run_group(group)
                return

    def _run_group(self, group: str) -> None:
        candidates = self._open(group, list_candidates(group, self.race.knobs, self._ground))
        until_s = self._course.left_s - self._allotted_s(group)
        winner = self._heats(group, candidates, until_s) if candidates else None
        seen = {tried.name for tried in self.race.tried if tried.group == group}
        found = refine(winner, self.race.knobs, self._ground) if winner is not None else ()
        more = [candidate for candidate in found if candidate.name not in seen]
        if more:
            self._heats(group, more, min(until_s, self._course.left_s - self._allotted_s(group, _REFINE_WEIGHT)))
        self.race = replace(self.race, done=(*self.race.done, group), noise=self._noise.deviation)

    def _open(self, group: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Without those that have failed before: where a group is raced again, nothing is won by a second crash."""
        out = {tried.name for tried in self.race.tried if tried.group == group and tried.place == "out"}
        return [candidate for candidate in candidates if candidate.name not in out]

    def _allotted_s(self, group: str, weight: float | None = None) -> float:
        """This group's part of the time that is left; what it does not need goes to those after it."""
        rest = [name for name in self.groups[self.groups.index(group) + 1 :] if name not in self.race.done]
        rest = [name for name in rest if list_candidates(name, self.race.knobs, self._ground)]
        own = _WEIGHTS.get(group, 1.0) if weight is None else weight
        others = sum(_WEIGHTS.get(name, 1.0) for name in rest) + _SECOND_LOOK_WEIGHT
        return self._course.left_s * own / (own + others)

    def prove_again(self) -> None:
        """A second look, at each group that has won by itself: what is not missed when it is taken back, stays back.

        With several candidates in each of several groups, some win by chance; hardly one does so twice.
        """
        while True:
            with contextlib.suppress(_FallenBackError):
                self._prove_again(self._backs())
                return

    def _backs(self) -> list[Candidate]:
        """Each group that has won, taken back."""
        start, won = self.race.start, dict.fromkeys(t.group for t in self.race.tried if t.place == "won")
        backs = []
        for group in won:
            names = {n for t in self.race.tried if t.group == group and t.place == "won" for n in t.values}
            values = {name: start.get(name) for name in sorted(names) if self.race.knobs.get(name) != start.get(name)}
            if values:
                backs.append(Candidate(group, values))
        return backs

    def _prove_again(self, backs: list[Candidate]) -> None:
        while backs and self._course.left_s >= _LEAST_HEAT_S:
            count = self._course.room(len(backs))
            taken, backs = backs[:count], backs[count:]
            heat = self._run(SECOND_LOOK, taken, 0.0 if not backs else self._course.left_s / 2)
            for runner in heat.runners:
                found = heat.standing[runner.name]
                if found.standing == "worse" or found.rounds < _LEAST_ROUNDS:
                    continue
                self.race = replace(self.race, knobs={**self.race.knobs, **runner.candidate.values})
                reason = "not missed when it was taken back"
                self._note([tried_as(SECOND_LOOK, runner.candidate, "won", reason, found)])

    def _heats(self, group: str, candidates: Sequence[Candidate], until_s: float) -> Candidate | None:
        """Heats of as many challengers as memory holds; the last one that won, None where none did."""
        winner: Candidate | None = None
        waiting = list(candidates)
        while waiting:
            if self._course.left_s - until_s < _LEAST_HEAT_S:
                self._note(tried_as(group, c, "untried", "the time was over") for c in waiting)
                break
            # A start takes time that samples then lack, so no more begin than can also be measured.
            affordable = int((self._course.left_s - until_s) * _START_SHARE / max(self._course.start_s, 1e-3))
            count = self._course.room(max(1, min(len(waiting), affordable)))
            heat, waiting = waiting[:count], waiting[count:]
            winner = self._decide(group, self._run(group, heat, until_s)) or winner
        return winner

    def _run(self, group: str, candidates: Sequence[Candidate], until_s: float) -> Heat:
        heat = Heat(self._enter(group, candidates))
        heat.alive = list(heat.runners)
        control = self._enter_control() if heat.alive else None
        try:
            while heat.alive and not self._is_over(heat, until_s):
                names = [LEADER, *(runner.name for runner in heat.alive)]
                if control is not None and len(control.scores) < _CONTROL_ROUNDS and _CONTROL not in heat.out:
                    names.append(_CONTROL)
                self._tell(group, heat.alive, len(heat.base.scores))
                found = self._round(group, names, len(heat.base.scores))
                if found[LEADER] is None:
                    self._pick_up_leader()
                    continue
                for runner in (heat.base, *heat.alive, *([] if control is None else [control])):
                    runner.extend(found.get(runner.name), self._objective)
                if _CONTROL in names and found[_CONTROL] is None:
                    heat.out.add(_CONTROL)
                self._drop(group, heat, found)
                if all(self._judge(r, heat).standing in ("better", "even") for r in heat.alive):
                    break
        finally:
            for name in [*(runner.name for runner in heat.runners), _CONTROL]:
                self._course.leave(name)
        if control is not None:
            self._noise.learn(differences(control.scores, heat.base.scores))
        for runner in heat.runners:
            heat.standing.setdefault(runner.name, self._judge(runner, heat))
            self._noise.learn(differences(runner.scores, heat.base.scores))
        return heat

    def _enter(self, group: str, candidates: Sequence[Candidate]) -> list[Runner]:
        runners: list[Runner] = []
        for number, candidate in enumerate(candidates):
            name = f"{group}-{number}"
            self._say(f"starting {candidate.name}")
            try:
                self._course.enter(name, {**self.race.knobs, **candidate.values})
                hopeless = self._course.is_hopeless(name, LEADER)
            except VeloError as error:
                self._course.leave(name)
                self._note([tried_as(group, candidate, "out", reason_of(error))])
                continue
            if hopeless:
                self._course.leave(name)
                self._note([tried_as(group, candidate, "lost", "far slower at its first answer")])
                continue
            runners.append(Runner(name, candidate))
        return runners

    def _enter_control(self) -> Runner | None:
        """In the first heat the setting to beat runs twice, which tells the machine's own noise."""
        if self._knows_noise or self._course.block > 1 or self._course.room(2) < 2:
            return None
        self._knows_noise = True
        try:
            self._course.enter(_CONTROL, self.race.knobs)
        except VeloError:
            return None  # the usual noise has to do
        return Runner(_CONTROL)

    def _round(self, group: str, names: Sequence[str], index: int) -> dict[str, list[Sample] | None]:
        """Samples of all in turn, on the same prompts; None where a server failed."""
        rounds = self._course.next_rounds()
        found: dict[str, list[Sample] | None] = {}
        for place in balanced_order(len(names), index // self._course.block):
            name = names[place]
            try:
                found[name] = self._course.measure(name, rounds, group)
            except VeloError as error:
                found[name] = None
                self._failures[name] = reason_of(error)
        return found

    def _pick_up_leader(self) -> None:
        """The setting to beat has failed: it is started again, but not for ever.

        Raises:
            _FallenBackError: another one leads now.
            VeloError: the start itself fails.
        """
        led = self.race.knobs
        self._falls += 1
        if self._falls > _MOST_FALLS:
            reason = self._failures.get(LEADER, "it failed")
            if not self._take_back(reason):
                raise VeloError(
                    f"the setting to beat fails again and again, the last time with: {reason}",
                    "`velollm bench` shows whether the engine runs here at all",
                )
            self._falls = 0
        self.start_leader()
        if self.race.knobs != led:
            raise _FallenBackError

    def _take_back(self, reason: str) -> bool:
        """What has won last is out, and what led before it leads; False where nothing has won."""
        fallen = take_back(self.race, f"it led, and then failed: {reason}")
        if fallen is None:
            return False
        self.race = fallen
        return True

    def _drop(self, group: str, heat: Heat, found: Mapping[str, list[Sample] | None]) -> None:
        """Those that failed, and those that are surely beaten, leave the heat."""
        best = max(heat.alive, key=lambda r: middle(differences(r.scores, heat.base.scores)), default=None)
        for runner in list(heat.alive):
            judgement = self._judge(runner, heat)
            beaten = judgement.standing == "worse"
            if found.get(runner.name) is None:
                self._note([tried_as(group, runner.candidate, "out", self._failures.get(runner.name, "it failed"))])
                heat.out.add(runner.name)
                beaten = True
            elif not beaten and best is not None and runner is not best and group != SECOND_LOOK:
                beaten = judge(differences(runner.scores, best.scores), self._noise).standing == "worse"
            if beaten:
                heat.standing[runner.name] = judgement
                heat.alive.remove(runner)
                self._course.leave(runner.name)

    def _judge(self, runner: Runner, heat: Heat) -> Judgement:
        return judge(differences(runner.scores, heat.base.scores), self._noise)

    def _decide(self, group: str, heat: Heat) -> Candidate | None:
        """Who won; the leader's server is then that setting's."""
        able = [
            r for r in heat.alive if promises(heat.standing[r.name]) and may_win(r, heat.base, heat.standing[r.name])
        ]
        winner = max(able, key=lambda r: heat.standing[r.name].ratio or 0.0, default=None)
        for runner in heat.runners:
            if runner.name not in heat.out:
                found = heat.standing[runner.name]
                place, reason = place_of(runner, found, winner, able)
                self._note([tried_as(group, runner.candidate, place, reason, found)])
        if winner is None:
            return None
        knobs = {**self.race.knobs, **winner.candidate.values}
        self.race = replace(self.race, knobs=knobs)
        self.start_leader()
        return winner.candidate if self.race.knobs == knobs else None

    def _is_over(self, heat: Heat, until_s: float) -> bool:
        rounds, left_s = len(heat.base.scores), self._course.left_s
        if rounds < _LEAST_ROUNDS and left_s > 0:
            return False
        return rounds >= _MOST_ROUNDS * self._course.block or left_s <= until_s

    def _note(self, tried: Iterable[Tried]) -> None:
        self.race = replace(self.race, tried=(*self.race.tried, *tried))

    def _tell(self, group: str, alive: Sequence[Runner], rounds: int) -> None:
        names = ", ".join(runner.candidate.name for runner in alive)
        self._say(f"{group.replace('_', ' ')}, round {rounds + 1}: {names}")

    def _say(self, text: str) -> None:
        if self._progress is None:
            return
        left_s = max(self._course.left_s, 0.0)
        leads = ", ".join(f"{name}={value}" for name, value in self.race.changed.items() if value is not None)
        self._progress(1 - left_s / self._total_s, f"{text}; leads: {leads or 'the start'}", left_s)
