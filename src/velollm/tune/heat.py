"""What a race holds: candidates as it left them, and a heat while it is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from velollm.bench.samples import Sample
from velollm.knobs import Knobs, KnobValue
from velollm.tune.candidates import Candidate
from velollm.tune.judge import Judgement
from velollm.tune.objective import Objective

Place = Literal["won", "lost", "even", "out", "untried"]

LEADER = "leader"
"""Name of the server with the setting to beat."""
SECOND_LOOK = "second look"
"""The group of what has won because something that had won was not missed."""


@dataclass(frozen=True)
class Tried:
    """One candidate as the race left it: its ``ratio`` to the setting that it was raced against, with a 90% interval.

    ``place``: it ``won`` and became the setting to beat, ``lost``, was ``even`` (within the noise), went ``out``
    because the engine refused it or failed with it, or was ``untried`` as the time was over.
    """

    group: str
    name: str
    values: Knobs
    place: Place
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0


@dataclass(frozen=True)
class Race:
    """How far a race came. ``knobs``: what leads. ``done``: groups that need not be raced again. ``noise``: by how much
    two samples of one setting differ here, as a share. ``interrupted``: somebody ended it.
    """

    start: Knobs
    knobs: Knobs
    tried: tuple[Tried, ...] = ()
    done: tuple[str, ...] = ()
    noise: float | None = None
    interrupted: bool = False

    @property
    def changed(self) -> dict[str, KnobValue]:
        """What the leader has that the start had not."""
        return {name: value for name, value in self.knobs.items() if self.start.get(name) != value}


@dataclass
class Runner:
    """One server in a heat: logarithms of its figures, one for each round."""

    name: str
    candidate: Candidate = field(default_factory=lambda: Candidate("", {}))
    scores: list[float | None] = field(default_factory=list)
    decodes: list[float | None] = field(default_factory=list)

    def extend(self, samples: Sequence[Sample] | None, objective: Objective) -> None:
        for sample in samples or ():
            self.scores.append(_log(objective.score(sample)))
            self.decodes.append(_log(sample.decode_tokens_per_s))


@dataclass
class Heat:
    """Challengers against the setting to beat (``base``): those still ``alive``, and those ``out``, which failed."""

    runners: list[Runner]
    base: Runner = field(default_factory=lambda: Runner(LEADER))
    alive: list[Runner] = field(default_factory=list)
    standing: dict[str, Judgement] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)


def tried_as(group: str, candidate: Candidate, place: Place, reason: str = "", found: Judgement | None = None) -> Tried:
    figures = (found.ratio, found.low, found.high, found.rounds) if found is not None else (None, None, None, 0)
    return Tried(group, candidate.name, candidate.values, place, reason, *figures)


def _log(value: float | None) -> float | None:
    return math.log(value) if value else None


def differences(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """One for each round that both have."""
    pairs = zip(ours, theirs, strict=False)
    return [a - b for a, b in pairs if a is not None and b is not None]


def middle(values: Sequence[float]) -> float:
    """The median; below all others where there is nothing."""
    return median(values) if values else -math.inf


def may_win(runner: Runner, base: Runner, found: Judgement) -> bool:
    """Guessing has to be surely better, and to make decode quicker too, not only the whole turn."""
    if runner.candidate.values.get("speculation", "none") == "none":
        return True
    return found.standing == "better" and middle(differences(runner.decodes, base.decodes)) > 0


def place_of(runner: Runner, found: Judgement, winner: Runner | None, able: Sequence[Runner]) -> tuple[Place, str]:
    if winner is runner:
        return "won", ""
    if runner in able:
        return "lost", "another of its kind is faster"
    if found.standing == "worse" or (found.high is not None and found.high < 1):
        return "lost", ""
    if found.standing == "better":
        return "lost", "another of its kind is faster" if winner is not None else "decode is no faster with it"
    return "even", "no difference that is sure"


def take_back(race: Race, reason: str) -> Race | None:
    """The race without what has won last, which is out for this reason; None where nothing has won."""
    won = [place for place, tried in enumerate(race.tried) if tried.place == "won"]
    last = max((place for place in won if race.tried[place].group != SECOND_LOOK), default=None)
    if last is None:
        return None
    tried, knobs = list(race.tried), dict(race.start)
    tried[last] = replace(tried[last], place="out", reason=reason)
    for place in won:
        if place != last:
            knobs |= tried[place].values
    return replace(race, knobs=knobs, tried=tuple(tried))


def take_back_all(race: Race, reason: str) -> Race:
    """The race back at its start: all that has won is out for this reason."""
    while (fallen := take_back(race, reason)) is not None:
        race = fallen
    return race
