"""Races on a track whose truth is known: every setting has a speed, and samples scatter around it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from velollm.bench.samples import Sample
from velollm.errors import EngineError, VeloError
from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs, KnobValue, Profile
from velollm.tune.candidates import GROUPS, Ground
from velollm.tune.heat import LEADER, Race, Tried, take_back
from velollm.tune.objective import Objective
from velollm.tune.race import run_race

PROFILE = Profile("code", "", 8192, 1, "code", "decode", speculation=("ngram-mod",))
FACTS = Facts.model_validate({"os": "linux", "cpu": {"physical_cores": 4, "logical_cores": 4}, "gpus": []})
GROUND = Ground(FACTS, PROFILE, frozenset(KNOBS))
START: dict[str, KnobValue] = {
    **dict.fromkeys(KNOBS),
    "threads": 4,
    "slots": 1,
    "batch": 512,
    "ubatch": 512,
    "context_tokens": 8192,
    "repack": "on",
    "speculation": "none",
    "kv_unified": "off",
    "flash_attention": "auto",
    "priority": "normal",
    "load_mode": "none",
    "cache_reuse": 0,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
}
OBJECTIVE = Objective("speed", 0, lambda sample: sample.decode_tokens_per_s)


class Paper:
    """A track on paper: ``speed`` of some knobs, ``noise`` of a sample, and a second for each start and sample."""

    def __init__(
        self,
        speed: Callable[[Knobs], float],
        noise: float = 0.03,
        budget_s: float = 300.0,
        seed: int = 1,
        most: int = 8,
    ) -> None:
        self.speed, self.noise, self.left_s, self.most = speed, noise, budget_s, most
        self.draw = random.Random(seed)
        self.up: dict[str, Knobs] = {}
        self.starts: list[str] = []
        self.most_up = self.number = 0
        self.start_s, self.block = 1.0, 1

    def room(self, wanted: int) -> int:
        return min(wanted, self.most)

    def enter(self, name: str, knobs: Knobs) -> None:
        self.left_s -= 1
        self.starts.append(name)
        self.speed(knobs)
        self.up[name] = knobs
        self.most_up = max(self.most_up, len(self.up))

    def leave(self, name: str) -> None:
        self.up.pop(name, None)

    def is_hopeless(self, name: str, other: str) -> bool:
        return self.speed(self.up[name]) * 4 < self.speed(self.up[other])

    def next_rounds(self) -> tuple[int, ...]:
        self.number += 1
        return (self.number,)

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
        self.left_s -= 1
        rate = self.speed(self.up[name]) * math.exp(self.draw.gauss(0, self.noise))
        return [Sample(name, "paper", number, 0, decode_tokens_per_s=rate) for number in rounds]


def speed_of(knobs: Knobs) -> float:
    """Three threads are best, guesses of 16 tokens gain half, small batches a tenth; the rest is of no matter."""
    threads = {4: 1.0, 3: 1.3, 2: 0.9, 1: 0.5}[int(str(knobs["threads"]))]
    guess = 1.5 if (knobs["speculation"], knobs["speculation_tokens"]) == ("ngram-mod", 16) else 1.0
    return 40 * threads * guess * (1.1 if knobs["ubatch"] == 256 else 1.0)


def race(track: Paper, ground: Ground = GROUND, start: Race | None = None) -> Race:
    found = run_race(start or Race(START, START), ground, track, OBJECTIVE)
    for name in list(track.up):
        track.leave(name)
    return found


def test_the_best_of_each_group_comes_together() -> None:
    track = Paper(speed_of)
    found = race(track)
    assert speed_of(found.knobs) == pytest.approx(40 * 1.3 * 1.5 * 1.1)
    assert found.changed["threads"] == 3
    assert {t.name for t in found.tried if t.place == "won"} >= {"threads=3", "batch=256, ubatch=256"}
    assert found.noise is not None
    assert 0.01 < found.noise < 0.06


def test_never_slower_than_the_start_whatever_the_noise() -> None:
    found = [race(Paper(lambda knobs: 40.0, noise=0.08, seed=seed)).changed for seed in range(40)]
    assert sum(map(bool, found)) / 40 < 0.25  # a change that is of no matter is rare, as it has to win twice


def test_a_real_loss_is_never_taken() -> None:
    for seed in range(20):
        found = race(Paper(lambda knobs: 40.0 * (1.0 if knobs == START else 0.93), noise=0.05, seed=seed))
        assert found.changed == {}


def test_regret_stays_small_at_usual_noise() -> None:
    regrets = []
    for seed in range(25):
        found = race(Paper(speed_of, noise=0.05, seed=seed))
        regrets.append(speed_of({**START, "threads": 3, "ubatch": 256}) * 1.5 / speed_of(found.knobs) - 1)
    assert sorted(regrets)[12] <= 0.001
    assert max(regrets) <= 0.101


def test_what_the_engine_refuses_is_out_with_its_reason_and_the_race_goes_on() -> None:
    def speed(knobs: Knobs) -> float:
        if knobs["flash_attention"] == "off":
            raise VeloError("the engine does not start: flash attention is required", "")
        return speed_of(knobs)

    found = race(Paper(speed))
    out = [t for t in found.tried if t.place == "out"]
    assert [(t.name, t.reason) for t in out] == [
        ("flash_attention=off", "the engine does not start: flash attention is required")
    ]
    assert found.changed["threads"] == 3


class Crashing(Paper):
    """A server with these knobs dies at its third sample."""

    def __init__(self, speed: Callable[[Knobs], float], dies: Callable[[str, Knobs], bool]) -> None:
        super().__init__(speed)
        self.dies = dies
        self.asked: dict[str, int] = {}

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
        self.asked[name] = self.asked.get(name, 0) + 1
        if self.asked[name] >= 3 and self.dies(name, self.up[name]):
            raise VeloError("out of memory", "")
        return super().measure(name, rounds, group)


def test_a_candidate_that_crashes_is_out_and_its_server_gone() -> None:
    track = Crashing(lambda knobs: 40.0, lambda name, knobs: knobs["batch"] == 256)
    found = race(track)
    assert ("batch=256, ubatch=256", "out of memory") in {(t.name, t.reason) for t in found.tried if t.place == "out"}
    assert track.up == {}


def test_a_leader_that_fails_again_and_again_ends_the_race() -> None:
    track = Crashing(lambda knobs: 40.0, lambda name, knobs: name == LEADER)
    with pytest.raises(VeloError, match="fails again and again"):
        run_race(Race(START, START), GROUND, track, OBJECTIVE)


class Fragile(Paper):
    """Servers fail to start or to answer as `fails` says: of the number of the start or sample by that name."""

    def __init__(
        self,
        speed: Callable[[Knobs], float],
        *,
        starts: Callable[[str, int, Knobs], bool] = lambda *_: False,
        answers: Callable[[str, int, Knobs], bool] = lambda *_: False,
    ) -> None:
        super().__init__(speed)
        self._fails_to_start, self._fails_to_answer = starts, answers
        self._asked: Counter[str] = Counter()

    def enter(self, name: str, knobs: Knobs) -> None:
        if self._fails_to_start(name, self.starts.count(name) + 1, knobs):
            self.starts.append(name)
            raise EngineError("the engine could not load it", "killed")
        super().enter(name, knobs)

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
        self._asked[name] += 1
        if self._fails_to_answer(name, self._asked[name], self.up[name]):
            raise EngineError("the engine ended in the middle of its work", "killed")
        return super().measure(name, rounds, group)


def test_a_control_that_does_not_start_or_dies_is_done_without() -> None:
    for track in (
        Fragile(speed_of, starts=lambda name, *_: name == "leader-control"),
        Fragile(speed_of, answers=lambda name, number, _: name == "leader-control" and number == 2),
    ):
        found = race(track)
        assert found.changed["threads"] == 3
        assert track.starts.count("leader-control") == 1
        assert track._asked["leader-control"] in (0, 2)


def test_a_winner_that_does_not_start_a_second_time_is_out_and_what_led_before_leads() -> None:
    track = Fragile(speed_of, starts=lambda name, _, knobs: name == LEADER and knobs["threads"] == 3)
    found = race(track)
    (fallen,) = [t for t in found.tried if t.values == {"threads": 3}]
    assert (fallen.place, fallen.reason) == ("out", "it led, and then failed: killed")
    assert "threads" not in found.changed
    assert found.changed["ubatch"] == 256  # the race went on


def test_a_leader_that_dies_after_it_has_won_falls_back_to_the_one_before() -> None:
    track = Fragile(speed_of, answers=lambda name, _, knobs: name == LEADER and knobs["speculation"] != "none")
    found = race(track)
    assert {t.place for t in found.tried if t.group == "speculation" and t.reason.startswith("it led")} == {"out"}
    assert "speculation" not in found.changed
    assert found.changed["threads"] == 3
    assert found.changed["ubatch"] == 256
    assert track.up == {}


def test_a_start_that_fails_to_come_back_once_is_started_again() -> None:
    track = Fragile(
        speed_of,
        starts=lambda name, number, _: name == LEADER and number == 2,
        answers=lambda name, number, _: name == LEADER and number == 2,
    )
    assert race(track).changed["threads"] == 3


def test_a_start_that_never_starts_ends_the_race_at_once() -> None:
    track = Fragile(speed_of, starts=lambda name, *_: name == LEADER)
    with pytest.raises(EngineError, match="could not load it: killed"):
        race(track)
    assert track.starts == [LEADER]


def test_a_kept_leader_that_no_longer_starts_gives_way_to_the_start() -> None:
    won = Tried("threads", "threads=3", {"threads": 3}, "won")
    kept = Race(START, {**START, "threads": 3}, (won,), done=("threads",))
    found = race(Fragile(speed_of, starts=lambda name, _, knobs: knobs["threads"] == 3), start=kept)
    assert found.tried[0].place == "out"
    assert found.changed["ubatch"] == 256
    assert "threads" not in found.changed


def test_a_candidate_that_failed_before_is_not_tried_again_when_the_race_goes_on() -> None:
    out = Tried("batch", "batch=256, ubatch=256", {"batch": 256, "ubatch": 256}, "out", "killed")
    found = race(Paper(speed_of), start=Race(START, START, (out,)))
    assert [t.place for t in found.tried if t.name == out.name] == ["out"]


def test_a_race_that_goes_on_knows_its_noise() -> None:
    track = Paper(speed_of)
    kept = Race(START, START, done=tuple(g for g in GROUPS if g != "batch"), noise=0.02)
    found = race(track, start=kept)
    assert "leader-control" not in track.starts
    assert found.noise is not None
    assert found.noise == pytest.approx(0.02, rel=0.9)


def test_taking_back_leaves_what_else_has_won() -> None:
    one, two = Tried("threads", "", {"threads": 3}, "won"), Tried("batch", "", {"batch": 256}, "won")
    look = Tried("second look", "", {"threads": 4}, "won")
    start: Knobs = {"threads": 4, "batch": 512}
    fallen = take_back(Race(start, {"threads": 4, "batch": 256}, (one, two, look)), "killed")
    assert fallen is not None
    assert fallen.knobs == {"threads": 4, "batch": 512}
    assert [t.place for t in fallen.tried] == ["won", "out", "won"]
    assert take_back(Race(start, start, (look,)), "killed") is None


def test_far_slower_ones_cost_no_sample() -> None:
    found = race(Paper(lambda knobs: 40.0 if knobs["threads"] == 4 else 1.0))
    slow = [t for t in found.tried if t.group == "threads"]
    assert {t.reason for t in slow} == {"far slower at its first answer"}
    assert all(t.rounds == 0 for t in slow)


def test_memory_for_two_servers_makes_heats_of_two() -> None:
    track = Paper(speed_of, most=1)
    found = race(track)
    assert track.most_up == 2
    assert found.changed["threads"] == 3


def test_the_time_is_kept_and_what_was_not_tried_is_named() -> None:
    track = Paper(speed_of, budget_s=25.0)
    found = race(track)
    assert track.left_s > -12
    assert any(t.place == "untried" for t in found.tried)


class Stopped(Paper):
    """Somebody presses Ctrl-C at the first sample of the group ``batch``."""

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
        if group == "batch":
            raise KeyboardInterrupt
        return super().measure(name, rounds, group)


def test_an_interrupted_race_keeps_what_leads_and_goes_on_from_there() -> None:
    seen: list[Race] = []
    first = run_race(Race(START, START), GROUND, Stopped(speed_of), OBJECTIVE, keep=seen.append)
    assert first.interrupted
    assert first.changed["threads"] == 3
    assert seen[-1].done[:1] == ("threads",)
    track = Paper(speed_of)
    second = race(track, start=replace(first, interrupted=False))
    assert not [name for name in track.starts if name.startswith("threads")]
    assert second.changed["ubatch"] == 256


def test_guesses_that_only_help_the_prompt_do_not_win() -> None:
    """The whole turn seems quicker and decode is not: guessing is for decode."""
    objective = Objective("turn", 0, lambda sample: sample.prefill_tokens_per_s)

    class Odd(Paper):
        def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
            guesses = self.up[name]["speculation"] != "none"
            found = super().measure(name, rounds, group)
            decode = 39.0 if guesses else 40.0
            return [replace(s, prefill_tokens_per_s=s.decode_tokens_per_s, decode_tokens_per_s=decode) for s in found]

    track = Odd(lambda knobs: 60.0 if knobs["speculation"] != "none" else 40.0)
    found = run_race(Race(START, START), GROUND, track, objective)
    assert found.knobs["speculation"] == "none"


def test_progress_names_what_leads() -> None:
    told: list[tuple[float, str, float]] = []
    run_race(Race(START, START), GROUND, Paper(speed_of), OBJECTIVE, progress=lambda *seen: told.append(seen))
    shares = [done for done, _, _ in told]
    assert shares == sorted(shares)
    assert "leads: threads=3" in told[-1][1]
