"""Guesses of MTP layers and of a DFlash draft on real engines: the embedded one, llama-server, and through Ollama."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.models.dflash import write_dflash
from tests.real_ollama import RealOllama, real_ollama
from velollm.autopilot.racing import find_llama_server
from velollm.backends.base import Backend, ModelRef, RunningServer
from velollm.backends.embedded import EmbeddedBackend
from velollm.backends.llamacpp import LlamaCppBackend
from velollm.backends.ollama import OllamaBackend
from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts
from velollm.knobs import Knobs
from velollm.models.families import get_family
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_memory
from velollm.models.succession import Succession
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.units import MIB

FACTS = Facts(cpu=CpuFacts(physical_cores=1), gpus=())
KNOBS: Knobs = {"context_tokens": 512, "slots": 1, "threads": 1, "load_mode": "none"}
SURE = Succession(0.95, 40, heads_agreement=0.75)
TURNS = Succession(0.95, 2)
ENGINES = ("embedded", pytest.param("llama-server", marks=pytest.mark.ollama))
ROUNDING_BYTES = MIB // 20


@dataclass(frozen=True)
class Files:
    """A model with MTP layers, one of two tokens that take turns, and a DFlash draft for that."""

    heads: Path
    turns: Path
    dflash: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("models")
    shape = get_family("llama:tiny").shape
    found = Files(root / "heads.gguf", root / "turns.gguf", root / "dflash.gguf")
    write_model(found.heads, draw_blueprint(get_family("qwen35:tiny").shape, Recipe("q8_0", succession=SURE)))
    write_model(found.turns, draw_blueprint(shape, Recipe("q8_0", succession=TURNS)))
    # Any token will do: what it is right about here is not looked at.
    write_dflash(found.dflash, shape, TURNS, unknown=400)
    return found


def engine(name: str) -> Backend:
    if name == "embedded":
        if importlib.util.find_spec("xllamacpp") is None:
            pytest.skip("the embedded engine is not installed")
        return EmbeddedBackend()
    ollama = shutil.which("ollama")
    binary = None if ollama is None else find_llama_server(Path(ollama))
    if binary is None:
        pytest.skip("there is no llama-server beside an ollama on PATH")
    return LlamaCppBackend(str(binary))


def greedy(server: RunningServer) -> str | None:
    return server.greedy_text("any text", max_tokens=40, deadline_s=60)


@pytest.mark.parametrize("name", ENGINES)
def test_mtp_layers_guess_at_the_length_that_was_asked_for(name: str, files: Files, tmp_path: Path) -> None:
    model = ModelRef("heads", files.heads)
    with engine(name).trial(model, KNOBS, FACTS, log=tmp_path / "plain") as server:
        plain = greedy(server)
    asked: Knobs = {**KNOBS, "speculation": "draft-mtp", "speculation_tokens": 2, "polling": 0}
    with engine(name).trial(model, asked, FACTS, log=tmp_path / "log") as server:
        assert greedy(server) == plain
        found = server.complete("any text", max_tokens=120, seed=1, deadline_s=60)
        buffers = server.buffers()
    assert found.drafted_tokens is not None and found.accepted_tokens is not None
    assert 60 < found.drafted_tokens <= 240
    # Two at once, right after three of four tokens; the text itself strays now and then.
    assert found.accepted_tokens / found.drafted_tokens == pytest.approx((0.75 + 0.75**2) / 2, abs=0.15)
    assert "n_max=2" in (tmp_path / "log").read_text(errors="replace")
    estimate = estimate_memory(model_facts(read_gguf(files.heads), "heads"), asked)
    assert estimate is not None
    (device,) = estimate.devices
    if name == "llama-server":
        for term, size in buffers.items():
            assert abs(getattr(device, f"{term}_bytes") - size) <= ROUNDING_BYTES, term
    assert buffers["draft"] > 0


@pytest.mark.parametrize("name", ENGINES)
def test_a_dflash_draft_guesses(name: str, files: Files, tmp_path: Path) -> None:
    model = ModelRef("turns", files.turns)
    with engine(name).trial(model, KNOBS, FACTS, log=tmp_path / "plain") as server:
        plain = greedy(server)
    asked: Knobs = {**KNOBS, "speculation": "draft-dflash", "draft_model": str(files.dflash), "speculation_tokens": 5}
    with engine(name).trial(model, asked, FACTS, log=tmp_path / "log") as server:
        assert greedy(server) == plain
        found = server.complete("any text", max_tokens=60, seed=1, deadline_s=60)
        buffers = server.buffers()
    assert found.drafted_tokens is not None and found.drafted_tokens > 100
    draft = model_facts(read_gguf(files.dflash), "dflash")
    estimate = estimate_memory(model_facts(read_gguf(files.turns), "turns"), asked, draft=draft)
    assert estimate is not None
    (device,) = estimate.devices
    if name == "llama-server":
        # The states that it reads are kept: at most all of them for each token of the step.
        states = {"compute": 2 * 256 * 4 * 512}
        for term, size in buffers.items():
            more = size - getattr(device, f"{term}_bytes")
            assert -ROUNDING_BYTES <= more <= ROUNDING_BYTES + states.get(term, 0), term
    assert buffers["draft"] > 0


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_without_such_layers_does_not_load(name: str, files: Files, tmp_path: Path) -> None:
    asked: Knobs = {**KNOBS, "speculation": "draft-mtp"}
    with (
        pytest.raises(VeloError, match="could not load turns"),
        engine(name).trial(ModelRef("turns", files.turns), asked, FACTS, log=tmp_path / "log"),
    ):
        pass
    log = (tmp_path / "log").read_text(errors="replace")
    assert "context type MTP requested but model doesn't contain MTP layers" in log


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[RealOllama]:
    with (
        real_ollama(tmp_path_factory.mktemp("ollama")) as found,
        httpx.Client(base_url=found.url, trust_env=False, timeout=60) as client,
    ):
        for name in ("heads", "turns"):
            content = getattr(files, name).read_bytes()
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            client.post(f"/api/blobs/{digest}", content=content).raise_for_status()
            body = {"model": name, "files": {f"{name}.gguf": digest}, "stream": False}
            client.post("/api/create", json=body).raise_for_status()
        yield found


@pytest.mark.ollama
@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("heads", {}, "no implementations specified for speculative decoding"),
        ("heads", {"speculation": "draft-mtp"}, "implementation 'draft-mtp'"),
        ("heads", {"speculation": "draft-mtp", "speculation_tokens": 2}, "n_max=2"),
        ("turns", {"speculation": "draft-dflash"}, "implementation 'draft-dflash'"),
    ],
)
def test_ollama_carries_it_to_the_engine(
    ollama: RealOllama,
    files: Files,
    name: str,
    knobs: Knobs,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    backend = OllamaBackend()
    draft: Knobs = {"draft_model": str(files.dflash)} if "draft-dflash" in knobs.values() else {}
    log = tmp_path / "log"
    with backend.trial(backend.find_model(name), {**KNOBS, **knobs, **draft}, FACTS, log=log) as trial:
        answer = trial.complete("any text", max_tokens=60, seed=1, deadline_s=60)
        counters = trial.counters()
    backend.api.close()
    assert answer.error is None
    assert said in log.read_text(errors="replace")
    assert counters is not None
    assert (counters.drafted_tokens > 30) is bool(knobs)
