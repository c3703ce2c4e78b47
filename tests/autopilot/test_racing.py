"""Races with real engines that fail: refused, out of memory, killed while they load and in the middle of an answer."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.autopilot.test_flight import Passenger, one_core
from velollm.autopilot import Order, RaceWish, _try, chart, tune
from velollm.autopilot.racing import has_room, kept_race, starting_point, subject_of
from velollm.backends import embedded, llamahttp
from velollm.backends.child import Child
from velollm.backends.llamahttp import LlamaHttp
from velollm.config import user_paths
from velollm.estimate.arithmetic import calculate
from velollm.facts import Facts, MemoryFacts, ModelFacts
from velollm.knobs import Knobs, KnobValue
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.synthetic import Shape, ensure_model
from velollm.tune.candidates import GROUPS
from velollm.tune.heat import Race, Tried
from velollm.tune.record import Confirmed, keep_race

if sys.platform == "linux":
    import resource

KILLED = "it was killed, most likely for want of memory"
REFUSED = "llama_init_from_model: quantized V cache requires flash_attn to be enabled"
# One layer with a large cache: 8 MiB at a context of 8,192 tokens.
DRAFT = Shape("made-draft", 1, 256, 8, 8, 256, 2048, 8192)
_SPARE_BYTES = 1 << 20
"""A draft's engine may hold so much more than the setting to beat."""


class Engines:
    """The engines that a race starts, by the names of their logs, and what befalls them when they do."""

    def __init__(self) -> None:
        self.befalls: Callable[[str, Child, Knobs], None] = lambda *_: None
        self.started: list[str] = []
        self.doomed: set[int] = set()
        self._real = embedded.start_engine

    def start(self, model: Any, knobs: Knobs, *, log: Path, **more: Any) -> Child:
        child = self._real(model, knobs, log=log, **more)
        self.started.append(log.stem)
        self.befalls(log.stem, child, knobs)
        return child


class Hasty(Passenger):
    """Presses Ctrl-C at a moment, by itself as soon as the race begins."""

    def __init__(self, moment: str = "starting ") -> None:
        super().__init__()
        self._moment = moment

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        super().__call__(done, text, left_s)
        if text.startswith(self._moment):
            raise KeyboardInterrupt


class Deadly(llamahttp._Reader):
    """Reads an answer of an engine that is killed after its third token."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid

    def take(self, line: str, now_s: float) -> None:
        super().take(line, now_s)
        if self.events and self.events[-1][1] >= 3:
            kill(self._pid)


def kill(pid: int) -> None:
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """Real engines; in the end none of them may be left."""
    found, before = Engines(), psutil.Process().children(recursive=True)
    real = LlamaHttp._reader

    def reader(server: LlamaHttp) -> Any:
        (pid,) = server.pids()
        return Deadly(pid) if pid in found.doomed else real(server)

    monkeypatch.setattr(embedded, "start_engine", found.start)
    monkeypatch.setattr(LlamaHttp, "_reader", reader)
    monkeypatch.setattr("velollm.autopilot.tuning._LEAST_CONFIRM_S", 3.0)
    monkeypatch.setattr("velollm.autopilot.aftermath._MOST_BUSY_S", 1.0)
    monkeypatch.setattr("velollm.autopilot.aftermath._LEAST_PRICE_S", 1.0)
    monkeypatch.setattr("velollm.tune.track._ALONE_SLOWER", 1e6)  # however busy this machine is
    yield found
    assert psutil.Process().children(recursive=True) == before
    assert [path for path in user_paths().data.rglob("*") if path.name.endswith(".part")] == []


def order(model: Path, budget_s: float, **more: KnobValue) -> Order:
    pins: dict[str, KnobValue] = {"context_tokens": 8192, "threads": 1, **more}
    return Order(str(model), "embedded", pins=pins, paths=user_paths(), probe=one_core, budget_s=budget_s, quick=True)


def written_bytes(pid: int) -> int:
    """What RLIMIT_DATA limits: memory of its own that a process may write to (proc_pid_status(5), VmData)."""
    match = re.search(r"^VmData:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match.group(1)) * 1024


@pytest.mark.flight
@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_whatever_becomes_of_candidates_the_race_goes_on_and_is_confirmed(
    tiny: Path, tmp_path: Path, engines: Engines
) -> None:
    draft = ensure_model(DRAFT, tmp_path)
    first: list[Child] = []
    active: list[Child] = []

    def befalls(name: str, child: Child, knobs: Knobs) -> None:
        if not first:
            first.append(child)
        if name.startswith("race-") and knobs.get("draft_model") == str(draft):
            most = written_bytes(first[0].pid) + _SPARE_BYTES
            resource.prlimit(child.pid, resource.RLIMIT_DATA, (most, most))
        if knobs.get("repack") == "off" or name == "busy-tuned":
            kill(child.pid)
        if knobs.get("openmp_wait") == "active":
            active.append(child)

    class Watcher(Passenger):
        def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
            super().__call__(done, text, left_s)
            if "openmp wait, round 2" in text:
                engines.doomed |= {child.pid for child in active}

    engines.befalls, cockpit = befalls, Watcher()
    knobs = frozenset({"draft_model", "repack", "openmp_wait", "kv_type_v"})
    found = tune(order(tiny, 15.0, flash_attention="off"), RaceWish(knobs, lossy=True, drafts=(draft,)), cockpit)
    out = {tried.name: tried for tried in found.race.tried if tried.place == "out"}
    why = {name.rpartition("draft_model=")[2]: tried.reason for name, tried in out.items()}
    shortage = why.pop("made-draft.gguf")
    assert re.fullmatch(r"memory is short: .*\(attempted to allocate \s*[0-9.]+ MB\)", shortage)
    assert why == {
        "repack=off": KILLED,
        "openmp_wait=active": f"the engine ended in the middle of its work: {KILLED}",
        "kv_type_k=q8_0, kv_type_v=q8_0": REFUSED,
        "kv_type_k=q4_0, kv_type_v=q4_0": REFUSED,
    }
    (went_on,) = [tried for tried in found.race.tried if tried.place != "out" and tried.group != "second look"]
    assert went_on.name == "openmp_wait=passive"
    assert went_on.rounds > out["openmp_wait=active"].rounds
    assert any(note.startswith("Not measured with a neighbour: ") and KILLED in note for note in cockpit.notes)
    assert found.short is not None
    assert found.short.arms == ("default", "tuned")
    assert found.kept is not None
    assert found.kept.is_final


@pytest.mark.flight
def test_what_won_and_fails_when_it_is_confirmed_gives_way_to_the_start(tiny: Path, engines: Engines) -> None:
    cockpit, flight = Passenger(), order(tiny, 8.0)
    course = chart(flight, cockpit)
    subject, start = subject_of(course), starting_point(course)
    assert subject is not None
    won = Tried("kv_type", "kv_type_k=q8_0", {"kv_type_k": "q8_0"}, "won", rounds=3, ratio=1.1)
    knobs = {**start, "kv_type_k": "q8_0"}
    keep_race(user_paths().data, subject, Race(start, knobs, (won,), done=GROUPS, noise=0.02), None)

    def befalls(name: str, child: Child, knobs: Knobs) -> None:
        if name == "race-second look-0" or (name != "race-leader" and knobs.get("kv_type_k") == "q8_0"):
            kill(child.pid)

    engines.befalls = befalls
    found = tune(flight, RaceWish(frozenset({"kv_type_k"}), lossy=True, resume=True), cockpit)
    names = ["race-leader", "race-second look-0", "price-0", "price-1", "busy-default", "busy-tuned"]
    assert engines.started[:6] == names
    assert any(note.startswith("The price could not be measured: ") and KILLED in note for note in cockpit.notes)
    assert found.race.changed == {}
    (first, second) = found.race.tried
    assert (first.place, first.reason) == ("out", f"it won, and failed when it was to be confirmed: {KILLED}")
    assert (second.group, second.reason) == ("second look", KILLED)
    assert any("Going back to where the race began" in note for note in cockpit.notes)
    assert not found.advised
    kept = kept_race(course)
    assert kept is not None
    assert kept.is_final
    assert kept.knobs == {}


@pytest.mark.flight
@pytest.mark.parametrize("moment", ["with one core busy: starting 'tuned'", "starting 'tuned'"])
def test_ctrl_c_after_the_race_keeps_it_unconfirmed_too(tiny: Path, engines: Engines, moment: str) -> None:
    cockpit, flight = Hasty(moment), order(tiny, 8.0)
    course = chart(flight, cockpit)
    subject, start = subject_of(course), starting_point(course)
    assert subject is not None
    keep_race(user_paths().data, subject, Race(start, start, done=GROUPS, noise=0.02), None)
    engines.befalls = lambda name, child, _: kill(child.pid) if name == "busy-tuned" else None
    found = tune(flight, RaceWish(resume=True), cockpit)
    assert cockpit.texts[-1] == moment
    assert found.race.interrupted
    assert (found.short, found.kept, found.advised) == (None, None, False)
    assert found.reason == "interrupted: this led, and is not confirmed; --resume goes on"
    kept = kept_race(course)
    assert kept is not None
    assert not kept.is_final
    assert kept.race.done == GROUPS


def test_an_unfinished_race_of_another_plan_is_raced_anew(tiny: Path, engines: Engines) -> None:
    cockpit, flight = Passenger(), order(tiny, 8.0)
    course = chart(flight, cockpit)
    subject, start = subject_of(course), dict(starting_point(course))
    assert subject is not None
    keep_race(user_paths().data, subject, Race(start, {**start, "repack": "off"}, done=GROUPS), None)

    other = replace(flight, pins={**flight.pins, "ubatch": 256, "batch": 256})
    hasty = Hasty()
    found = tune(other, RaceWish(knobs=frozenset({"repack"}), resume=True), hasty)
    assert found.race.interrupted
    assert found.race.changed == {}
    (note,) = hasty.notes
    assert "began from another plan: " in note
    assert "ubatch was 512 and is 256" in note


def test_a_race_that_cannot_be_kept_is_run_all_the_same(tiny: Path, engines: Engines) -> None:
    user_paths().data.mkdir(parents=True)
    (user_paths().data / "races").write_text("a file in the way")
    hasty = Hasty()
    found = tune(order(tiny, 10.0), RaceWish(frozenset({"repack", "openmp_wait"})), hasty)
    assert found.race.interrupted
    (note,) = hasty.notes
    assert note.startswith("The race is not kept: cannot make the directory ")


@pytest.mark.flight
def test_a_kept_winner_that_fails_in_a_flights_trial_is_left_out_of_it_and_of_later_ones(
    tiny: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("velollm.autopilot.trial._SHORTEST_TRIAL_S", 3.0)
    cockpit = Passenger()
    course = chart(order(tiny, 5.0), cockpit)
    subject, start = subject_of(course), starting_point(course)
    assert subject is not None
    won = Tried("flash_attention", "flash_attention=off", {"flash_attention": "off"}, "won", rounds=3, ratio=1.1)
    race = Race(start, {**start, "flash_attention": "off"}, (won,), done=GROUPS)
    keep_race(user_paths().data, subject, race, Confirmed("turn", 1.1, 1.05, 1.15, "faster"))

    def befalls(name: str, child: Child, knobs: Knobs) -> None:
        if knobs.get("flash_attention") == "off":
            kill(child.pid)

    engines.befalls = befalls
    flown, trial, raced = _try(course, cockpit)
    assert (flown.plan, raced) == (course.plan, None)
    assert trial is not None
    assert trial.plan.knobs.get("flash_attention") != "off"
    assert f"What won the race fails in the trial: {KILLED}. Trying the plan without it." in cockpit.notes
    kept = kept_race(course)
    assert kept is not None
    assert kept.is_final
    assert kept.knobs == {}
    assert kept.race.tried[0].reason == f"it won, and failed in a later trial: {KILLED}"


def test_a_draft_needs_room_for_its_cache_and_buffers_too(tiny: Path) -> None:
    model = model_facts(read_gguf(tiny), "tiny")
    base: dict[str, KnobValue] = {"context_tokens": 8192, "slots": 4, "load_mode": "none", "speculation": "none"}
    draft: dict[str, KnobValue] = {**base, "speculation": "draft-simple", "draft_model": str(tiny)}
    alone, both = calculate(model, base, Facts()), calculate(model, draft, Facts())
    assert alone is not None
    assert both is not None
    assert both.total_bytes - alone.total_bytes > 10 * tiny.stat().st_size  # its file is the least of it

    def facts(bytes_: float, known: ModelFacts | None = model) -> Facts:
        return Facts(model=known, memory=MemoryFacts(available_bytes=round(bytes_ / 0.9) + 1))

    between = facts((alone.total_bytes + both.total_bytes) / 2)
    assert has_room(between, base)
    assert not has_room(between, draft)
    assert not has_room(between, draft, model)
    assert has_room(facts(both.total_bytes), draft)
    # The length of guesses from earlier text costs no model.
    assert has_room(between, {**base, "speculation": "ngram-mod", "draft_model": str(tiny)})
    # What is not known, the engine says.
    assert has_room(between, {**draft, "draft_model": str(tiny.with_name("none.gguf"))})
    assert has_room(facts(0, None), draft)
    assert has_room(Facts(model=model), draft)
