"""What was set against what is there and what runs."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import MODEL, FakeOllama, StoredModel
from tests.report.test_terminal import shown
from velollm.apply import Write, apply_writes, undo_flight
from velollm.backends.ollama import OllamaBackend
from velollm.config import Paths
from velollm.facts import Facts, ServerFacts
from velollm.journal import Flight, FlightMeta, Journal
from velollm.report.status import render_standing, standing_fields
from velollm.status.read import read_places, read_standing, read_started_at
from velollm.status.standing import Setting, Standing
from velollm.targets.base import State
from velollm.targets.file import FileTarget
from velollm.targets.ollama_places import OllamaPlaces

META = FlightMeta("0.2.0", "ollama", "m:1b", "slots=4")
NAME = f"{MODEL}:latest"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path / "config", tmp_path / "data", tmp_path / "cache")
    found.config.mkdir()
    return found


def fly(paths: Paths, text: str, file: Path | None = None) -> Flight:
    write = Write(FileTarget(file or paths.ollama_env), State.of_text(text))
    flight = apply_writes([write], Journal(paths.journal), META)
    assert flight is not None
    return flight


def served(environment: dict[str, str] | None = None, **values: Any) -> Facts:
    server = {"engine": "ollama", "reachable": True, "url": "http://127.0.0.1:1", "environment": environment, **values}
    sources = {"server.environment": "/proc/7/environ", "server.loaded": "http://127.0.0.1:1/api/ps"}
    return Facts(server=ServerFacts.model_validate(server), sources=sources)


def only(standing: Standing) -> Setting:
    (found,) = standing.settings
    return found


def test_nothing_was_set(paths: Paths) -> None:
    standing = read_standing(paths, served({}))
    assert (standing.settings, standing.places, standing.drift) == ((), (), False)
    assert "VeloLLM has set nothing here." in shown(render_standing(standing))


def test_what_is_set_runs(paths: Paths) -> None:
    paths.ollama_env.write_text("MINE=1\n")
    flight = fly(paths, "MINE=1\nOLLAMA_NUM_PARALLEL=4\n")
    standing = read_standing(paths, served({"OLLAMA_NUM_PARALLEL": "4", "MINE": "1"}))
    found = only(standing)
    assert (found.key, found.wanted, found.there, found.running) == ("OLLAMA_NUM_PARALLEL", "4", "4", "4")
    assert (found.verdict, found.where, found.flight) == ("runs", "/proc/7/environ", flight.id)
    assert [place.state for place in standing.places] == ["as written"]
    assert not standing.drift
    assert "Everything that is set runs." in shown(render_standing(standing), 120)


@pytest.mark.parametrize(
    ("file", "text", "verdict"),
    [
        ("compose.override.yaml", 'services:\n  llm:\n    environment:\n      OLLAMA_NUM_PARALLEL: "4"\n', "runs"),
        ("velollm.conf", '[Service]\nEnvironment="OLLAMA_NUM_PARALLEL=4"\n', "runs"),
        ("velollm.conf", "[Service]\nUnsetEnvironment=LLAMA_ARG_THREADS\n", "runs"),
        ("velollm.conf", "[Service]\nUnsetEnvironment=OLLAMA_NUM_PARALLEL\n", "differs"),
        ("config.ini", "[*]\npoll = 0\n", "unknown"),
    ],
)
def test_each_kind_of_file_is_compared(paths: Paths, file: str, text: str, verdict: str) -> None:
    fly(paths, text, paths.config / file)
    os.utime(paths.config / file, (1, 1))
    found = only(read_standing(paths, served({"OLLAMA_NUM_PARALLEL": "4"}, pid=os.getpid())))
    assert found.verdict == verdict


def test_a_setting_that_was_never_activated_waits_for_a_restart(paths: Paths) -> None:
    fly(paths, "OLLAMA_NUM_PARALLEL=4\n")
    later = datetime.now(UTC) + timedelta(hours=1)
    os.utime(paths.ollama_env, (later.timestamp(),) * 2)
    standing = read_standing(paths, served({}, pid=os.getpid()))
    found = only(standing)
    assert (found.verdict, found.running) == ("waits", None)
    assert found.detail is not None
    assert "never activated: the server runs since 20" in found.detail
    assert standing.drift
    assert "runs with: not set (/proc/7/environ)" in shown(render_standing(standing), 120)


def test_a_server_that_was_started_later_with_something_else_differs(paths: Paths) -> None:
    fly(paths, "OLLAMA_NUM_PARALLEL=4\n")
    os.utime(paths.ollama_env, (1, 1))
    found = only(read_standing(paths, served({"OLLAMA_NUM_PARALLEL": "2"}, pid=os.getpid())))
    assert (found.verdict, found.running) == ("differs", "2")
    assert found.detail is not None
    assert "after that, with something else" in found.detail


@pytest.mark.parametrize(
    ("now", "state"), [("OLLAMA_NUM_PARALLEL=8\n", "changed"), ("MINE=1\n", "put back"), (None, "removed")]
)
def test_who_changed_a_place_since_is_said(paths: Paths, now: str | None, state: str) -> None:
    paths.ollama_env.write_text("MINE=1\n")
    fly(paths, "OLLAMA_NUM_PARALLEL=4\n")
    if now is None:
        paths.ollama_env.unlink()
    else:
        paths.ollama_env.write_text(now)
    standing = read_standing(paths, served({"OLLAMA_NUM_PARALLEL": "4"}))
    (place,) = standing.places
    assert place.state == state
    assert place.detail is not None
    assert place.detail.startswith("by somebody else")
    assert ("last written 20" in place.detail) == (now is not None)
    assert standing.drift
    changed = next(setting for setting in standing.settings if setting.key == "OLLAMA_NUM_PARALLEL")
    assert changed.verdict == "changed"
    assert f"{paths.ollama_env} (flight {place.flight}): {state}" in shown(render_standing(standing), 400)


def test_a_change_beside_ours_moves_the_place_but_not_our_setting(paths: Paths) -> None:
    fly(paths, "OLLAMA_NUM_PARALLEL=4\n")
    paths.ollama_env.write_text("OLLAMA_NUM_PARALLEL=4\nTHEIRS=1\n")
    standing = read_standing(paths, served({"OLLAMA_NUM_PARALLEL": "4"}))
    assert only(standing).verdict == "runs"
    assert standing.places[0].state == "changed"
    assert standing.drift


def test_the_newest_flight_over_a_place_counts(paths: Paths) -> None:
    fly(paths, "A=1\nB=1\n")
    second = fly(paths, "A=2\nB=1\n")
    standing = read_standing(paths, served({"A": "2", "B": "1"}))
    assert {(s.key, s.wanted, s.verdict) for s in standing.settings} == {("A", "2", "runs"), ("B", "1", "runs")}
    assert [(place.flight, place.state) for place in standing.places] == [(second.id, "as written")]
    undo_flight(Journal(paths.journal))
    assert {(s.key, s.wanted) for s in read_standing(paths, served({})).settings} == {("A", "1"), ("B", "1")}


def test_a_variable_that_was_taken_away(paths: Paths) -> None:
    paths.ollama_env.write_text("A=1\nB=2\n")
    fly(paths, "A=1\n")
    assert only(read_standing(paths, served({"A": "1"}))).verdict == "runs"
    found = only(read_standing(paths, served({"A": "1", "B": "2"})))
    assert (found.wanted, found.running, found.verdict) == (None, "2", "waits")
    fly(paths, "A=1\nB=\n")
    assert only(read_standing(paths, served({"A": "1"}))).verdict == "runs"


def test_an_undone_flight_is_not_listed(paths: Paths) -> None:
    fly(paths, "A=1\n")
    undo_flight(Journal(paths.journal))
    assert read_standing(paths, served({})).flights == ()


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (Facts(), "no server answers"),
        (served({}, reachable=False), "no server answers"),
        (served(None), "may not be read"),
    ],
)
def test_what_nobody_can_tell_is_unknown(paths: Paths, facts: Facts, why: str) -> None:
    fly(paths, "A=1\n")
    standing = read_standing(paths, facts)
    found = only(standing)
    assert (found.verdict, found.running) == ("unknown", None)
    assert found.detail is not None
    assert why in found.detail
    assert not standing.drift


def test_the_log_stands_in_where_the_process_may_not_be_read(paths: Paths) -> None:
    fly(paths, "OLLAMA_NUM_PARALLEL=4\n")
    facts = served(None, logged_environment={"OLLAMA_NUM_PARALLEL": "4"})
    found = only(read_standing(paths, facts))
    assert (found.verdict, found.where) == ("runs", "the server's log")


def test_our_own_engines_files_are_no_drift(paths: Paths) -> None:
    fly(paths, "LLAMA_ARG_THREADS=4\n", paths.engine_env)
    standing = read_standing(paths, served({}))
    assert only(standing).verdict == "unknown"
    assert not standing.drift


@pytest.fixture
def derived(fake: FakeOllama, paths: Paths) -> FakeOllama:
    """A model whose original has a parameter of its own, with one of ours over it."""
    fake.store[NAME] = StoredModel("weights", (("num_thread", "2"), ("stop", '"x"')))
    backend = OllamaBackend(fake.url)
    places = OllamaPlaces(backend, MODEL, paths.ollama_env)
    writes = places.writes([("model", "num_ctx", "1024"), ("model", "num_batch", "256")])
    apply_writes([Write(t, after, before) for t, before, after in writes], Journal(paths.journal), META)
    backend.api.close()
    return fake


def test_a_models_parameters_are_compared_with_its_engine(derived: FakeOllama, paths: Paths) -> None:
    argv = ["llama-server", "--model", "x", "-c", "1024", "-b", "512"]
    loaded = [{"name": NAME, "context_tokens": 1024, "argv": argv}]
    standing = read_standing(paths, served({}, loaded=loaded))
    found = {s.key: (s.wanted, s.running, s.verdict, s.where) for s in standing.settings}
    assert found == {
        "num_ctx": ("1024", "1024", "runs", "http://127.0.0.1:1/api/ps"),
        "num_batch": ("256", "512", "differs", "command line of the engine's process"),
    }
    assert [place.label for place in standing.places] == [f"Ollama model {MODEL}"]


def test_a_model_that_is_not_in_memory_is_idle(derived: FakeOllama, paths: Paths) -> None:
    standing = read_standing(paths, served({}, loaded=[]))
    assert {setting.verdict for setting in standing.settings} == {"idle"}
    assert not standing.drift
    assert "Nothing is known to differ." in shown(render_standing(standing), 120)


def test_a_model_that_somebody_made_anew_has_changed(derived: FakeOllama, paths: Paths) -> None:
    derived.store[NAME] = StoredModel("weights", (("num_ctx", "4096"),))
    standing = read_standing(paths, served({}, loaded=[]))
    assert standing.places[0].state == "changed"
    assert {s.key: s.there for s in standing.settings} == {"num_ctx": "4096", "num_batch": None}


def test_a_place_that_cannot_be_read_says_why(derived: FakeOllama, paths: Paths) -> None:
    derived.refuse["GET /api/tags"] = 500
    reading = read_places(Journal(paths.journal).read_flights())[f"Ollama model {MODEL}"]
    assert reading.state is None
    assert reading.problem is not None
    standing = read_standing(paths, served({}))
    assert standing.places[0].state == "unreadable"
    assert not standing.drift


def test_a_process_that_cannot_be_seen_has_no_start() -> None:
    assert read_started_at(None) is None
    assert read_started_at(2**22 + 1) is None
    started = read_started_at(os.getpid())
    assert started is not None
    assert started <= datetime.now(UTC)


def test_the_document_is_whole(paths: Paths) -> None:
    fly(paths, "A=1\n")
    fields = standing_fields(read_standing(paths, served({"A": "1"})))
    assert set(fields) == {"drift", "flights", "places", "settings", "server", "sources"}
    assert fields["settings"][0]["verdict"] == "runs"
    assert fields["sources"]["server.environment"] == "/proc/7/environ"
