"""The tuner through a real Ollama: candidates on its own engine, the winner confirmed through the server."""

from __future__ import annotations

import json

import psutil
import pytest

from tests.program import run_cli
from tests.real_ollama import MODEL, RealOllama, served

pytestmark = pytest.mark.ollama


server = pytest.fixture(scope="module")(served)


def test_a_race_on_ollamas_own_engine(server: RealOllama) -> None:
    tree, before = server.tree(), {p.pid for p in psutil.Process().children(recursive=True)}
    flags = ("--backend", "ollama", "--budget", "45s", "--knobs", "batch,ubatch,repack", "--set", "context_tokens=1024")
    done = run_cli("tune", MODEL, *flags, "--json", environ={"OLLAMA_HOST": server.url})
    assert done.returncode in (0, 3), done.stderr
    found = json.loads(done.stdout)
    assert found["raced_on"].startswith("llama-server")
    assert {tried["group"] for tried in found["race"]["tried"]} <= {"batch", "repack", "second look"}
    assert any(tried["rounds"] >= 2 for tried in found["race"]["tried"])
    assert found["confirmed"]["arms"] == ["default", "tuned"]
    assert found["advised"] == (done.returncode == 3)
    assert server.tree() == tree
    assert {p.pid for p in psutil.Process().children(recursive=True)} == before

    again = run_cli("tune", MODEL, *flags, "--resume", "--json", environ={"OLLAMA_HOST": server.url})
    assert json.loads(again.stdout)["race"]["tried"] == found["race"]["tried"]
    assert "still holds" in again.stderr
