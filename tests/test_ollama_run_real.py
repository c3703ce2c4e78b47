"""Flights that restart a real Ollama under `velollm run`: the change arrives, a bad one goes away by itself."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from tests.autopilot.test_restart import Pilot
from tests.real_ollama import MODEL, RealOllama, served
from velollm.autopilot import Course, Order, Outcome, chart
from velollm.autopilot.landing import activate, land, undo
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_log import parse_listening
from velollm.backends.ollama_run import reach_runner
from velollm.config import user_paths
from velollm.facts import ServerFacts
from velollm.plan import Change
from velollm.probe.machine import probe_machine
from velollm.probe.ollama import probe_ollama

pytestmark = pytest.mark.ollama


@dataclass(frozen=True)
class Running:
    """A `velollm run -- ollama serve` over the models of another server."""

    url: str
    home: Path
    environ: dict[str, str]

    def velollm(self, *words: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "velollm", *words, "--json"], env=self.environ, capture_output=True, timeout=240
        )
        assert done.returncode == 0, done.stderr.decode()
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


store = pytest.fixture(scope="module")(served)


@pytest.fixture
def running(store: RealOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    binary = shutil.which("ollama")
    assert binary is not None
    environ = {**store.environ(tmp_path), "OLLAMA_MODELS": str(store.models), "OLLAMA_NO_CLOUD": "1"}
    serve = {
        **environ,
        "LLAMA_ARG_THREADS": "1",
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_NOPRUNE": "1",
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
    }

    # A port that stays the same over a restart.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        serve["OLLAMA_HOST"] = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "velollm", "run", "--", binary, "serve"],
        env=serve,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: None)
    try:
        address = next(found for line in process.stderr if (found := parse_listening(line)))
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        for name in ("HOME", "VELOLLM_HOME"):
            monkeypatch.setenv(name, environ[name])
        monkeypatch.setenv("OLLAMA_HOST", f"http://{address}")
        yield Running(f"http://{address}", tmp_path, {**environ, "OLLAMA_HOST": f"http://{address}"})
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        reader.join(30)
        process.stderr.close()


def facts_now() -> ServerFacts:
    found = probe_ollama()
    assert found is not None
    return found.facts


@pytest.fixture
def course(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    backend = OllamaBackend()
    monkeypatch.setattr("velollm.backends.ollama.backend", backend)
    order = Order(MODEL, "ollama", pins={"slots": 2, "context_tokens": 1024}, probe=probe_machine)
    yield chart(order, Pilot())
    backend.api.close()


def fly(course: Course, changes: dict[tuple[str, str], str]) -> Outcome:
    """A flight of just these changes, without a trial."""
    made = tuple(Change(kind, key, None, value, "a test", "user") for (kind, key), value in changes.items())
    plan = replace(course.plan, changes=made)
    flight = land(course, plan, "a test")
    assert flight is not None
    return activate(Outcome(course, plan, applied=True, flight=flight.id), Pilot())


def test_a_flight_restarts_the_server_and_undo_does_again(running: Running, store: RealOllama) -> None:
    before = store.digests()
    flown = running.velollm(
        "optimize", MODEL, "--backend=ollama", "--yes", "--budget=40s", "--set=slots=2", "--set=context_tokens=1024"
    )
    assert flown["applied"] is True, flown["applied_reason"]
    assert flown["pending"] == []
    assert flown["restart"] == {
        "steps": ["a restart of your server, by the `velollm run` that it runs under"],
        "cut": 0,
    }
    facts = facts_now()
    assert facts.managed == "velollm run"
    assert facts.environment is not None
    assert facts.environment["OLLAMA_NUM_PARALLEL"] == "2"
    assert [model.slots for model in facts.loaded or ()] == [2]
    assert facts.log == "output of `velollm run`"
    undone = running.velollm("undo")
    assert undone["notes"] == ["restarted your server"]
    after = facts_now()
    assert after.environment is not None
    assert "OLLAMA_NUM_PARALLEL" not in after.environment
    assert after.pid != facts.pid
    assert store.digests() == before
    assert not user_paths().ollama_env.exists()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LLAMA_ARG_THREADS", "many", 'error while handling environment variable "LLAMA_ARG_THREADS": stoi'),
        ("OLLAMA_KV_CACHE_TYPE", "q9", "Unsupported cache type: q9"),
    ],
)
def test_a_bad_environment_goes_away_by_itself_and_the_reason_is_told(
    running: Running, course: Course, name: str, value: str, reason: str
) -> None:
    outcome = fly(course, {("environment", name): value})
    assert not outcome.applied
    assert outcome.applied_reason.startswith(f"undone by itself: {MODEL} does not load any more: ")
    assert reason in outcome.applied_reason
    assert not user_paths().ollama_env.exists()
    assert (facts_now().environment or {}).get(name) != value
    backend = course.backend
    assert isinstance(backend, OllamaBackend)
    with backend.user_server(MODEL) as server:
        assert server.complete("import os\n", max_tokens=4, seed=1, deadline_s=30).finish == "length"


def test_an_option_without_a_variable_reaches_the_engine(running: Running, course: Course) -> None:
    file = running.home / "xdg" / "llama.cpp" / "config.ini"
    assert course.places.label("config") == str(file)
    outcome = fly(course, {("config", "threads-batch"): "1"})
    assert outcome.applied, outcome.applied_reason
    runner = reach_runner(user_paths().runner_state)
    assert runner is not None
    log = runner.log()
    assert f"using config file: {file}" in log
    assert "(n_threads_batch = 1)" in log
    undo(outcome.flight)
    assert not file.parent.exists()


def test_an_answer_that_is_on_its_way_is_seen(running: Running, course: Course) -> None:
    backend = course.backend
    assert isinstance(backend, OllamaBackend)
    body = {"model": MODEL, "prompt": "import os\n", "raw": True, "options": {"num_predict": 200, "temperature": 1}}
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=120) as client:
            while not enough.is_set():
                client.post("/api/generate", json=body).raise_for_status()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until = time.monotonic() + 60
        while not (seen := backend.busy()) and time.monotonic() < until:
            pass
    finally:
        enough.set()
        asking.join(120)
    assert seen == 1
    assert backend.busy() == 0
