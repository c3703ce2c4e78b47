"""What is told of a model's drafts: the table's, those here, and what is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_ollama import FakeOllama
from tests.shared import shared_dir
from velollm.backends.ollama import OllamaBackend
from velollm.config import user_paths
from velollm.draft.known import device_of, overview
from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts, GpuFacts, MemoryFacts
from velollm.models.catalog import find_catalog_model
from velollm.models.families import get_family
from velollm.models.succession import Succession
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.probe.speedtest import MachineSpeed, machine_key


@pytest.fixture
def backend(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> OllamaBackend:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    return OllamaBackend(fake.url)


def made(path: Path, layers: int, succession: Succession) -> Path:
    shape = replace(get_family("qwen3:tiny").shape, layers=layers)
    write_model(path, draw_blueprint(shape, Recipe("q4_0", succession=succession)))
    return path


def test_a_model_that_is_not_here_is_told_of_by_the_table(backend: OllamaBackend) -> None:
    found = overview("llama3.1:8b", backend, user_paths())
    backend.api.close()
    assert found.basis is None
    assert [draft.pair.id for draft in found.drafts if draft.pair] == ["llama3.1-8b+llama3.2-1b", "llama3.1-8b-eagle3"]
    first, second = found.drafts
    assert (first.source, first.here, first.way) == (
        "llama3.2:1b", False, "the server's environment, for every model of the server",
    )  # fmt: skip
    assert first.gain is not None and 1 < first.gain.most < 3
    assert second.gain is None  # neither its size nor its acceptance is known
    assert found.left.kind == "ngram"
    assert "not here" in found.left.reason


def test_a_model_that_is_here_is_held_against_what_is_here(backend: OllamaBackend, tmp_path: Path) -> None:
    main = made(tmp_path / "main.gguf", 12, Succession(0.9, 64))
    draft = made(tmp_path / "draft.gguf", 1, Succession(0.9, 64, agreement=0.8))
    other = shared_dir("models") / "tiny-python-draft-f16.gguf"
    found = overview(str(main), backend, user_paths(), [draft, other])
    (row,) = found.drafts
    assert row.here and row.choice is not None and row.choice.compatibility.fits
    assert row.gain is not None and row.gain.most == row.gain.least > 1
    assert [choice.name for choice in found.unfit] == [str(other)]
    assert found.left.kind == "draft"
    alone = overview(str(main), backend, user_paths(), [other])
    backend.api.close()
    assert (alone.drafts, alone.left.kind) == ((), "ngram")
    assert "no draft that is here fits" in alone.left.reason
    assert "about 1B and less" in alone.left.reason


def test_an_ollama_that_speculates_with_nothing_leaves_none(
    backend: OllamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.api, "version", lambda: "0.20.1")
    found = overview("llama3.1:8b", backend, user_paths())
    backend.api.close()
    assert found.left.kind == "none"
    assert "0.30 brought it" in found.left.reason


def test_an_unknown_model_is_an_error(backend: OllamaBackend) -> None:
    with pytest.raises(VeloError, match="no model 'never-heard-of'"):
        overview("never-heard-of", backend, user_paths())
    backend.api.close()


def test_the_device_that_would_run_it() -> None:
    model = find_catalog_model("llama3.1:8b")
    assert model is not None
    memory = MemoryFacts(total_bytes=64 * 2**30, available_bytes=32 * 2**30)
    plain = Facts(os="linux", cpu=CpuFacts(model_name="x", usable_cores=2), memory=memory, gpus=())
    speed = MachineSpeed(
        machine=machine_key(plain), threads=2, block_bytes=1, read_bytes_per_s=30 * 10**9, multiply_flops=3 * 10**11,
        taken_at="2026-11-25T12:00:00+00:00", elapsed_s=1.0,
    )  # fmt: skip
    found = device_of(model, plain, speed)
    assert found is not None and found.backend == "cpu"
    assert found.read is not None and found.read.evidence == "measured"
    unmeasured = device_of(model, plain, None)
    assert unmeasured is not None and unmeasured.multiply is None
    card = GpuFacts(name="NVIDIA GeForce RTX 3090", vendor="nvidia", vram_bytes=24 * 2**30)
    with_card = plain.model_copy(update={"gpus": (card,)})
    found = device_of(model, with_card, None)
    assert found is not None and found.backend == "cuda"
    small = plain.model_copy(update={"gpus": (card.model_copy(update={"vram_bytes": 2 * 2**30}),)})
    assert device_of(model, small, None) is None
