"""Applying to a server that systemd keeps: written, restarted, looked at, and taken back where it is worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.autopilot.test_restart import Pilot
from tests.fake_ollama import FakeOllama
from tests.targets.outside import Programs, system
from velollm.autopilot import Course, Order, Outcome, chart, undo
from velollm.autopilot.chart import recorded_environment
from velollm.autopilot.landing import activate, journal_of, land, pending_of, planned_steps, same_measure
from velollm.backends.ollama import OllamaBackend
from velollm.bench.sizes import Sizes, Speed, fit_sizes
from velollm.bench.workload import load_workload
from velollm.config import user_paths
from velollm.facts import Facts, FailedLoad, ServerActivity, ServerFacts
from velollm.targets.unitfile import parse_dropin

MODEL = "tiny-python"
RESTART = ("systemctl daemon-reload", "systemctl restart ollama.service")
SERVER = ServerFacts(managed="systemd", unit="ollama.service", user_unit=False, reachable=True)
Probe = Callable[[], ServerFacts | None]


class Machine:
    """A machine with systemd and a fake Ollama; ``environment`` is what its server runs with after a restart."""

    def __init__(self, root: Path, fake: FakeOllama) -> None:
        self.root, self.fake = root, fake
        self.programs = Programs(dict.fromkeys(RESTART, ""))
        self.dropin = root / "etc/systemd/system/ollama.service.d/velollm.conf"
        self.made: list[OllamaBackend] = []

    def probe(self) -> ServerFacts:
        """What a restarted server would run with: that of its drop-in."""
        text = self.dropin.read_text() if self.dropin.exists() else ""
        return SERVER.model_copy(update={"pid": 9, "environment": parse_dropin(text)})

    def course(self, probe: Probe | None = None, server: ServerFacts = SERVER, **changes: Any) -> Course:
        order = Order(
            MODEL,
            "ollama",
            pins={"slots": 4, "context_tokens": 1024},
            paths=user_paths(),
            probe=lambda: Facts(gpus=(), server=server),
            probe_server=probe or self.probe,
            system=system(self.root, self.programs, **{"as_root": True, **changes}),
        )
        found = chart(order, Pilot())
        assert isinstance(found.backend, OllamaBackend)
        self.made.append(found.backend)
        return found


@pytest.fixture
def machine(tmp_path: Path, fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    backend = OllamaBackend()
    monkeypatch.setattr("velollm.backends.ollama.backend", backend)
    found = Machine(tmp_path, fake)
    yield found
    backend.api.close()


def fly(course: Course, pilot: Pilot | None = None) -> Outcome:
    flight = land(course, course.plan, "a test")
    assert flight is not None
    return activate(Outcome(course, course.plan, applied=True, flight=flight.id), pilot or Pilot())


def test_a_plan_reaches_the_server(machine: Machine) -> None:
    course = machine.course()
    assert planned_steps(course, course.plan) == RESTART
    assert pending_of(course, course.plan) == ()
    outcome = fly(course)
    assert outcome.applied
    assert (outcome.pending, outcome.restart and outcome.restart.steps) == ((), RESTART)
    assert parse_dropin(machine.dropin.read_text())["OLLAMA_NUM_PARALLEL"] == "4"
    assert machine.programs.asked == list(RESTART)
    assert recorded_environment(journal_of(user_paths()))["OLLAMA_NUM_PARALLEL"] == "4"


def test_undo_restarts_the_server(machine: Machine, fake: FakeOllama) -> None:
    before = fake.digests()
    course = machine.course()
    fly(course)
    machine.programs.asked.clear()
    result = undo(None, system=course.order.system)
    assert str(machine.dropin) in result.restored
    assert result.notes == ("restarted your server",)
    assert machine.programs.asked == list(RESTART)
    assert recorded_environment(journal_of(user_paths())) == {}
    assert not machine.dropin.parent.parent.exists()
    assert fake.digests() == before


def test_undo_says_what_is_left_where_the_restart_fails(machine: Machine) -> None:
    course = machine.course()
    fly(course)
    del machine.programs.answers[RESTART[1]]
    result = undo(None, system=course.order.system)
    assert result.notes == (
        "not in effect yet: `systemctl restart ollama.service` failed: systemctl: refused",
        *(f"type: {line}" for line in RESTART),
    )
    assert not machine.dropin.exists()


def test_a_server_that_cannot_be_restarted_is_as_before(machine: Machine, fake: FakeOllama) -> None:
    before = fake.digests()
    del machine.programs.answers[RESTART[1]]
    outcome = fly(machine.course())
    assert not outcome.applied
    assert outcome.applied_reason.startswith("undone by itself: `systemctl restart ollama.service` failed")
    assert "type: systemctl restart ollama.service" in outcome.applied_reason
    assert not machine.dropin.exists()
    assert fake.digests() == before


def test_a_setting_that_does_not_arrive_is_taken_back(machine: Machine, fake: FakeOllama) -> None:
    before = fake.digests()
    outcome = fly(machine.course(lambda: SERVER.model_copy(update={"pid": 9, "environment": {}})))
    assert not outcome.applied
    assert outcome.applied_reason.startswith("undone by itself: OLLAMA_")
    assert "not set" in outcome.applied_reason
    assert machine.programs.asked == [*RESTART, *RESTART]
    assert not machine.dropin.exists()
    assert fake.digests() == before


def test_a_model_that_does_not_load_any_more_is_told_with_the_engines_reason(
    machine: Machine, fake: FakeOllama
) -> None:
    reason = "quantized V cache requires flash_attn to be enabled"
    failed = ServerActivity(failures=(FailedLoad(model=f"{MODEL}:latest", reason=reason),))
    course = machine.course(lambda: SERVER.model_copy(update={"activity": failed}))
    fake.refuse["POST /api/generate"] = 500
    outcome = fly(course)
    assert not outcome.applied
    assert outcome.applied_reason == f"undone by itself: {MODEL} does not load any more: {reason}"
    assert not machine.dropin.exists()


@pytest.mark.parametrize(("prompt", "decode", "users"), [(92, 26, 16), (31, 9, 0), (768, 96, 128)])
def test_a_confirmation_asks_for_what_the_trial_asked_for(prompt: int, decode: int, users: int) -> None:
    trial = Sizes(3, 5, prompt, decode, 6.0, 3 if users else 0, users, 8 if users else 0)
    workload = same_measure(load_workload("agent"), trial)
    found = fit_sizes(workload, {"applied": Speed(500.0, 100.0)}, 60.0)
    assert (found.prompt_tokens, found.decode_tokens) == (prompt, decode)


def test_what_root_alone_may_do_is_left_to_a_person(machine: Machine) -> None:
    course = machine.course(as_root=False, lacks=("sudo",))
    steps = pending_of(course, course.plan)
    assert {item.key for item in steps} >= {"OLLAMA_NUM_PARALLEL"}
    assert all("sudo tee" in item.activate and "systemctl restart" in item.activate for item in steps)
    outcome = fly(course)
    assert outcome.applied
    assert {item.key for item in outcome.pending} == {item.key for item in steps}
    assert outcome.restart is None
    assert not machine.dropin.exists()
    assert planned_steps(course, course.plan) == ()


def test_what_the_user_set_in_the_unit_is_kept(machine: Machine) -> None:
    configured = {"systemctl show ollama.service": {"OLLAMA_KEEP_ALIVE": "2h"}}
    server = SERVER.model_copy(update={"configured": configured})
    course = machine.course(server=server)
    assert course.kept["keep_alive_s"] == 7200
    assert course.plan.knobs["keep_alive_s"] == 7200
    assert "OLLAMA_KEEP_ALIVE" not in {change.key for change in course.plan.changes}
    own = replace(course.order, override=True)
    assert "keep_alive_s" not in chart(own, Pilot()).kept


def test_what_a_flight_set_in_a_shared_place_is_not_the_users(machine: Machine) -> None:
    """The journal tells, where the place itself cannot."""
    course = machine.course()
    fly(course)
    recorded = recorded_environment(journal_of(user_paths()))
    assert recorded == {c.key: c.after for c in course.plan.changes if c.target == "environment"}
    undo(None, system=course.order.system)
    assert recorded_environment(journal_of(user_paths())) == {}
