"""`velollm status` as a program, with a fake server."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest

from tests.fake_ollama import MODEL, FakeOllama
from tests.program import document, one_error, run_cli, running_cli
from velollm.apply import Write, apply_writes
from velollm.config import user_paths
from velollm.journal import FlightMeta, Journal
from velollm.targets.base import State
from velollm.targets.file import FileTarget

NOBODY = {"OLLAMA_HOST": "127.0.0.1:9"}


def fly(text: str) -> str:
    paths = user_paths()
    write = Write(FileTarget(paths.ollama_env), State.of_text(text))
    flight = apply_writes([write], Journal(paths.journal), FlightMeta("0.2.0", "ollama", "m", text.strip()))
    assert flight is not None
    return flight.id


@pytest.fixture
def serving(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> FakeOllama:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    fake.loaded[f"{MODEL}:latest"] = datetime.now(UTC) + timedelta(seconds=900)
    return fake


def test_nothing_set_and_nobody_there() -> None:
    done = run_cli("status", environ=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "VeloLLM has set nothing here." in done.stdout
    found = document(run_cli("status", "--json", environ=NOBODY))
    assert (found["drift"], found["settings"], found["flights"]) == (False, [], [])


def test_drift_is_told_by_the_exit_code() -> None:
    flight = fly("OLLAMA_NUM_PARALLEL=4\n")
    assert run_cli("status", environ=NOBODY).returncode == 0
    user_paths().ollama_env.write_text("OLLAMA_NUM_PARALLEL=2\n")
    done = run_cli("status", environ=NOBODY)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"(flight {flight}): changed by somebody else; the file belongs to" in done.stdout
    found = document(run_cli("status", "--json", environ=NOBODY))
    (setting,) = found["settings"]
    assert (setting["wanted"], setting["there"], setting["verdict"]) == ("4", "2", "changed")


def test_what_runs_is_shown(serving: FakeOllama) -> None:
    done = run_cli("status")
    assert done.returncode == 0
    assert f"at {serving.url}" in done.stdout
    assert f"{MODEL}:latest: 24.6 MiB, context 2,048 ({serving.url}/api/ps)" in done.stdout


@pytest.mark.parametrize("text", ["0.1s", "soon", "-1s"])
def test_an_interval_that_is_none(text: str) -> None:
    done = run_cli("status", "--watch", "--interval", text)
    assert done.returncode == 2
    assert one_error(done)


def test_watch_in_a_pipe_writes_a_line_a_look_until_it_is_interrupted(serving: FakeOllama) -> None:
    with running_cli("status", "--watch", "--interval", "200ms") as cli:
        first = cli.wait_for(MODEL, stdout=True)
        serving.loaded.clear()
        assert cli.wait_for("no model in memory", stdout=True)
        os.kill(cli.process.pid, signal.SIGINT)
        done = cli.finish()
    assert f"{MODEL}:latest: slots unknown, decode unknown, prefill unknown, TTFT unknown" in first
    assert (done.returncode, done.stderr) == (0, "")


def test_watch_tells_one_document_a_line(serving: FakeOllama) -> None:
    with running_cli("status", "--watch", "--json", "--interval", "200ms") as cli:
        found = json.loads(cli.wait_for("reachable", stdout=True))
        os.kill(cli.process.pid, signal.SIGTERM)
        assert cli.finish().returncode == 0
    assert found["schema_version"] == 1
    assert found["models"][0]["name"] == f"{MODEL}:latest"
    assert found["models"][0]["slots"] is None


def test_watch_goes_on_while_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", NOBODY["OLLAMA_HOST"])
    with running_cli("status", "--watch", "--interval", "200ms") as cli:
        for _ in range(2):
            assert cli.wait_for("nothing answers", stdout=True)
        os.kill(cli.process.pid, signal.SIGINT)
        assert cli.finish().returncode == 0


def test_watch_on_a_terminal_leaves_with_q_and_gives_the_terminal_back(serving: FakeOllama) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    import subprocess
    import sys

    from tests.program import PATIENCE_S, program_environ

    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        argv = [sys.executable, "-m", "velollm", "status", "--watch"]
        environ = program_environ({"TERM": "xterm-256color"})
        with subprocess.Popen(argv, env=environ, stdin=slave, stdout=slave, stderr=slave) as process:
            seen = b""
            while b"slots" not in seen:
                seen += os.read(master, 65536)
            assert not termios.tcgetattr(slave)[3] & termios.ICANON
            os.write(master, b"q")
            assert process.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(slave)
        os.close(master)
    assert b"q leaves" in seen
    assert MODEL.encode() in seen
