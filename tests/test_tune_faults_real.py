"""The tuner through a real Ollama whose own engine refuses settings, is short of memory, crashes and is killed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.autopilot.test_flight import Passenger, one_core
from tests.program import left_alive, running_cli
from tests.real_ollama import MODEL, RealOllama, served
from velollm.autopilot import Order, RaceWish, tune
from velollm.autopilot.racing import find_llama_server
from velollm.backends.ollama import OllamaBackend
from velollm.cli.shared import parse_pins

pytestmark = pytest.mark.ollama

# Memory to write to, in KiB: enough to begin with, too little for the buffers of a batch of 1,024.
_LITTLE_KIB = 40 * 1024
_KILLED = "it was killed, most likely for want of memory"
# One setting is short of memory, one comes with an option that there is not, one crashes at once.
_WRAPPER = """#!/bin/sh
case " $* " in
*" --ubatch-size 1024 "*) ulimit -s 512; ulimit -d {kib} ;;
*" --flash-attn on "*) exec {engine} "$@" --no-such-option ;;
*" --no-repack "*) kill -SEGV $$ ;;
esac
exec {engine} "$@"
"""


server = pytest.fixture(scope="module")(served)


@pytest.fixture
def wrapped(server: RealOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ollama's own engine with little memory; candidates run on it, the confirmation on a whole Ollama."""
    engine = find_llama_server(Path(shutil.which("ollama") or ""))
    assert engine is not None
    wrapper = tmp_path / "llama-server"
    wrapper.write_text(_WRAPPER.format(kib=_LITTLE_KIB, engine=engine))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("velollm.autopilot.racing.find_llama_server", lambda _: wrapper)
    monkeypatch.setattr("velollm.autopilot.aftermath._MOST_BUSY_S", 4.0)
    monkeypatch.setattr("velollm.tune.track._ALONE_SLOWER", 1e6)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    backend = OllamaBackend()
    monkeypatch.setattr("velollm.backends.ollama.backend", backend)
    yield tmp_path / "temporary"
    backend.api.close()


class Watcher(Passenger):
    """Kills the engine of a candidate, by its command line, when a group is in its second round."""

    def __init__(self, group: str, words: str) -> None:
        super().__init__()
        self._group, self._words = group, words
        self.killed = 0

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        super().__call__(done, text, left_s)
        if not text.startswith(f"{self._group}, round 2"):
            return
        for child in psutil.Process().children(recursive=True):
            line = " ".join(child.cmdline())
            if "guard.py" not in line and self._words in line:
                os.kill(child.pid, signal.SIGKILL)
                self.killed += 1


def test_a_race_on_ollamas_engine_survives_what_becomes_of_its_candidates(server: RealOllama, wrapped: Path) -> None:
    tree, before = server.tree(), {p.pid for p in psutil.Process().children(recursive=True)}
    order = Order(
        MODEL, "ollama", pins={"context_tokens": 2048, "threads": 1}, probe=one_core, budget_s=50.0, quick=True
    )
    cockpit = Watcher("batch", "--ubatch-size 256 ")
    found = tune(order, RaceWish(frozenset({"ubatch", "flash_attention", "repack"})), cockpit)
    out = {tried.name: tried.reason for tried in found.race.tried if tried.place == "out"}
    shortage = out.pop("batch=1024, ubatch=1024")
    assert shortage.startswith("memory is short: ")
    assert cockpit.killed == 1
    assert out == {
        "batch=256, ubatch=256": f"the engine ended in the middle of its work: {_KILLED}",
        "flash_attention=on": "error: invalid argument: --no-such-option",
        "repack=off": "it was ended by signal 11 (Segmentation fault)",
    }
    went_on = {tried.name for tried in found.race.tried if tried.place != "out"}
    assert went_on >= {"batch=128, ubatch=128", "flash_attention=off"}
    assert found.raced is not None
    assert found.raced.engine.startswith("llama-server")
    assert found.short is not None
    assert found.kept is not None
    assert found.kept.is_final
    assert server.tree() == tree
    assert {p.pid for p in psutil.Process().children(recursive=True)} == before
    assert list(wrapped.iterdir()) == []


def test_killed_while_it_confirms_nothing_runs_on_and_resume_goes_on(
    server: RealOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(wrapped))
    tree, pins = server.tree(), ("context_tokens=1024", "threads=1")
    command = ("tune", MODEL, "--backend", "ollama", "--budget", "14s", "--knobs", "repack")
    with running_cli(*command, "--set", pins[0], "--set", pins[1]) as cli:
        cli.wait_for("with one core busy: round 1 of ")
        cli.wait_for(" s  round 1 of ")
        below = psutil.Process(cli.process.pid).children(recursive=True)
        cli.process.kill()
        assert cli.finish().returncode == -signal.SIGKILL
    assert left_alive(below) == []
    assert server.tree() == tree
    # Nobody was left to remove the homes of the servers.
    assert [path.name.startswith("velollm-ollama-") for path in wrapped.iterdir()] == [True, True]

    monkeypatch.setattr("velollm.autopilot.tuning._LEAST_CONFIRM_S", 4.0)
    cockpit = Passenger()
    order = Order(MODEL, "ollama", pins=parse_pins(list(pins)), budget_s=12.0, quick=True)
    found = tune(order, RaceWish(frozenset({"repack"}), resume=True), cockpit)
    assert not any("repack" in text for text in cockpit.texts)  # its group was done
    assert any(tried.group == "repack" for tried in found.race.tried)
    assert found.kept is not None
    assert found.kept.is_final
    assert list(wrapped.iterdir()) == []
