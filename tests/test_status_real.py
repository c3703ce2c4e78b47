"""Doctor, status and parameters on a real Ollama."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.autopilot.test_mending import QUIET
from tests.program import PATIENCE_S, running_cli
from tests.real_ollama import MODEL, RealOllama, served
from velollm.apply import Write, apply_writes, undo_flight
from velollm.autopilot import mend, undo
from velollm.backends.ollama import OllamaBackend
from velollm.config import user_paths
from velollm.doctor.base import EnvironmentMend, Evidence, Finding
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.journal import FlightMeta, Journal
from velollm.probe.machine import probe_machine
from velollm.status.read import read_standing
from velollm.targets.ollama_places import OllamaPlaces

pytestmark = pytest.mark.ollama
NAME = f"{MODEL}:latest"


server = pytest.fixture(scope="module")(served)


@pytest.fixture
def backend(server: RealOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaBackend]:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    found = OllamaBackend()
    yield found
    for model in found.holding():
        found.api.unload(model.name)
    found.api.close()


def velollm(server: RealOllama, home: Path, *argv: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "velollm", *argv],
        env=server.environ(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_cut_of_a_long_prompt_is_proved(server: RealOllama, backend: OllamaBackend, tmp_path: Path) -> None:
    found = velollm(server, tmp_path, "doctor", "--probe", "--yes", "--check", "truncation", "--json")
    cut = found["facts"]["server"]["truncation"]
    assert cut["context_tokens"] == 512
    assert cut["status"] == 200
    assert cut["kept_tokens"] < 512 < cut["prompt_tokens"]
    assert [finding["check"] for finding in found["findings"]] == ["truncation"]
    assert backend.holding() == []


def test_a_model_in_memory_is_there_afterwards_as_it_was(backend: OllamaBackend, server: RealOllama) -> None:
    from velollm.probe.ollama_truncation import probe_truncation

    backend.api.load(MODEL, {}, keep_alive=900)
    (before,) = backend.process.children if backend.process else ()
    cut = probe_truncation(backend.api, NAME, 2048)
    backend.forget()
    assert cut is not None
    assert (cut.context_tokens, cut.status) == (2048, 200)
    assert backend.process is not None
    assert backend.process.children == (before,)
    (held,) = backend.holding()
    assert 800 < held.keep_alive_left_s() <= 900


def flags(backend: OllamaBackend, model: str) -> dict[str, str]:
    """Flags of the engine's process after a load."""
    backend.api.load(model, {})
    backend.forget()
    assert backend.process is not None
    ((_, argv),) = backend.process.children
    return dict(pairwise(argv))


def test_a_parameter_of_the_users_own_gives_way_to_the_engines_default(
    backend: OllamaBackend, server: RealOllama, tmp_path: Path
) -> None:
    own = {"num_ctx": 512, "num_batch": 128, "num_thread": 1}
    backend.api.post("/api/create", {"model": "own", "from": MODEL, "parameters": own, "stream": False})
    tree, digests = server.tree(), server.digests()
    journal = Journal(tmp_path / "journal")
    try:
        before = flags(backend, "own")
        places = OllamaPlaces(backend, "own", tmp_path / "ollama.env", override=True)
        writes = places.writes([("model", name, None) for name in own])
        apply_writes([Write(t, a, b) for t, b, a in writes], journal, FlightMeta("", "ollama", "own", ""))
        after = flags(backend, "own")
        undo_flight(journal)
        assert (server.tree(), server.digests()) == (tree, digests)
    finally:
        backend.api.unload("own")
        backend.api.delete("/api/delete", {"model": "own"})
    assert (before["-c"], before["-b"], before["-t"]) == ("512", "128", "1")
    assert (after["-c"], after["-b"]) == ("2048", "512")
    assert "-t" not in after


def test_watch_sees_slots_and_speed_of_an_answer(
    backend: OllamaBackend, server: RealOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": MODEL, "prompt": "import os\n", "raw": True, "options": {"num_predict": -1, "num_ctx": 2048}}
    with (
        httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=60, trust_env=False) as answer,
        running_cli("status", "--watch", "--json", "--interval", "200ms") as cli,
    ):
        lines = answer.iter_lines()
        next(lines)
        model: dict[str, Any] = {}
        while not model.get("slots"):
            (model,) = json.loads(cli.wait_for(NAME, stdout=True))["models"]
        cli.process.send_signal(signal.SIGINT)
        assert cli.finish().returncode == 0
    assert len(model["slots"]) == 1
    assert model["slots"][0]["context_tokens"] == 2048
    assert model["resident_bytes"] > 10_000_000


def free_port() -> int:
    """A port that stays the same over restarts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def finding(variables: dict[str, str | None]) -> Finding:
    return Finding("a", "warning", "b", (Evidence("c", "d"),), "e", "f", EnvironmentMend(variables))


def look() -> Facts:
    return probe_machine(sample_s=0)


def verdicts() -> dict[str, str]:
    standing = read_standing(user_paths(), probe_machine(sample_s=0))
    return {setting.key: setting.verdict for setting in standing.settings}


def test_a_server_of_velollm_run_is_mended_and_given_back(
    server: RealOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(server.models))
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    monkeypatch.setenv("OLLAMA_NO_CLOUD", "1")
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("LLAMA_ARG_THREADS", "many")
    paths = user_paths()
    with running_cli("run", "--", "ollama", "serve") as cli:
        cli.wait_for('msg="Listening on ')
        pipe = cli.process.stderr
        assert pipe is not None
        drain = threading.Thread(target=lambda: [None for _ in pipe], daemon=True)
        drain.start()
        backend = OllamaBackend()
        with pytest.raises(VeloError, match="exit status 1"):
            backend.api.load(MODEL, {})
        done = mend(look(), [finding({"LLAMA_ARG_THREADS": None})], QUIET, paths, backend)
        assert paths.ollama_env.read_text() == "LLAMA_ARG_THREADS=\n"
        backend.api.load(MODEL, {})
        assert verdicts() == {"LLAMA_ARG_THREADS": "runs"}
        with pytest.raises(VeloError, match=r"put back, because then .*exit status 1"):
            mend(look(), [finding({"OLLAMA_KV_CACHE_TYPE": "q9"})], QUIET, paths, backend)
        assert [model.name for model in backend.holding()] == [NAME]
        assert verdicts() == {"LLAMA_ARG_THREADS": "runs"}
        backend.api.close()
        undo(done.flight)
        assert not paths.ollama_env.exists()
        cli.process.send_signal(signal.SIGINT)
        assert cli.process.wait(PATIENCE_S) == 0
        drain.join(PATIENCE_S)
