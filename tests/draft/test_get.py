"""Drafts proved before they are downloaded, and again afterwards, against a fake Ollama and a fake registry."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_ollama import FakeOllama, StoredModel
from tests.fake_registry import FakeRegistry, fake_registry
from tests.models.dflash import write_dflash
from tests.shared import shared_dir
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_registry import Registry
from velollm.draft.get import by_table, choose_name, fetch, prove, want
from velollm.draft.sources import find_here, parse_shown, read_file
from velollm.errors import VeloError
from velollm.models.drafts import load_draft_pairs
from velollm.models.families import get_family
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.models.tokenizer import TOKENS, fingerprint

MAIN, DRAFT = "tiny-python-5m-f16.gguf", "tiny-python-draft-f16.gguf"


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as found:
        yield found


@pytest.fixture
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.close()


@pytest.fixture
def backend(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaBackend]:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    found = OllamaBackend(fake.url)
    yield found
    found.api.close()


@pytest.fixture
def main() -> Path:
    return shared_dir("models") / MAIN


def blob(folder: Path, file: Path) -> Path:
    """A copy of a file where Ollama would have it."""
    path = folder / "blobs" / f"sha256-{hashlib.sha256(file.read_bytes()).hexdigest()}"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(file, path)
    return path


def unlike(folder: Path) -> Path:
    """A small model with another vocabulary."""
    path = folder / "unlike.gguf"
    shape = replace(get_family("qwen3:tiny").shape, layers=1)
    write_model(path, draw_blueprint(shape, Recipe("q4_0")))
    return path


def publish(fake: FakeOllama, server: FakeRegistry, folder: Path, name: str, file: Path) -> str:
    """A draft at the registry that the fake Ollama can pull from there."""
    full = server.add(name, file.read_bytes())
    fake.library.add(full)
    fake.files[full.removeprefix("http://")] = blob(folder, file)
    return full


def test_a_draft_is_proved_before_and_after_the_download(
    fake: FakeOllama, server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path, tmp_path: Path
) -> None:
    name = publish(fake, server, tmp_path, "tiny-draft:1", shared_dir("models") / DRAFT)
    wanted = want(str(main), name, backend, registry)
    assert wanted.proof.fits and wanted.proof.basis == "headers"
    assert wanted.proof.draft is not None and wanted.proof.draft.basis == "registry"
    assert wanted.proof.cost_ratio == pytest.approx(0.0808, abs=0.001)
    assert not fake.bodies("/api/pull")
    steps: list[str] = []
    proof = fetch(wanted, backend, lambda text, _: steps.append(text))
    assert proof.fits and proof.draft is not None and proof.draft.basis == "file"
    assert fake.bodies("/api/pull") == [{"model": name, "insecure": True}]
    assert steps[-1] == "success"
    again = want(str(main), name, backend, registry)
    assert again.remote is None and again.name == name.removeprefix("http://")


def test_a_wrong_vocabulary_is_refused_before_the_download(
    fake: FakeOllama, server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path, tmp_path: Path
) -> None:
    file = unlike(tmp_path)
    name = publish(fake, server, tmp_path, "unlike:1", file)
    with pytest.raises(VeloError, match=r"cannot draft for .*the draft's tokenizer is SPM, the model's BPE") as caught:
        want(str(main), name, backend, registry)
    assert "ngram" in caught.value.hint
    assert not fake.bodies("/api/pull")
    found = prove(read_file("main", main), name, backend, registry)
    assert found.fits is False and found.proved and found.compatibility is not None
    assert found.compatibility.differs == "kind"


def test_what_came_and_does_not_fit_is_removed_again(
    fake: FakeOllama, server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path, tmp_path: Path
) -> None:
    # The registry shows one file and the server gets another.
    name = publish(fake, server, tmp_path, "liar:1", shared_dir("models") / DRAFT)
    wanted = want(str(main), name, backend, registry)
    local = name.removeprefix("http://")
    fake.files[local] = blob(tmp_path, unlike(tmp_path))
    with pytest.raises(VeloError, match="it was removed again"):
        fetch(wanted, backend, lambda *_: None)
    assert local not in fake.store


def test_a_draft_larger_than_its_model_is_none(
    fake: FakeOllama, server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path, tmp_path: Path
) -> None:
    name = publish(fake, server, tmp_path, "large:1", main)
    with pytest.raises(VeloError, match=r"reads 12 times the bytes"):
        want(str(shared_dir("models") / DRAFT), name, backend, registry)


def test_no_room_no_model_no_network(
    fake: FakeOllama, server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name = publish(fake, server, tmp_path, "tiny-draft:1", shared_dir("models") / DRAFT)
    monkeypatch.setattr("velollm.draft.get._models_dir", lambda: tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 10**6, 10**6))
    with pytest.raises(VeloError, match=r"needs 1\.2 MiB and 1 GiB to spare"):
        want(str(main), name, backend, registry)
    with pytest.raises(VeloError, match="has no model"):
        want(str(main), name.replace("tiny-draft", "absent"), backend, registry)
    with pytest.raises(VeloError, match="cannot be reached"):
        want(str(main), "http://127.0.0.1:9/library/x:1", backend, registry)
    fake.library.clear()
    monkeypatch.undo()
    wanted = want(str(main), name, backend, registry)
    with pytest.raises(VeloError, match="cannot reach its library"):
        fetch(wanted, backend, lambda *_: None)


def test_without_parts_the_table_counts_and_says_that_nothing_is_proved(
    server: FakeRegistry, backend: OllamaBackend, registry: Registry, main: Path
) -> None:
    server.ranges = False
    name = server.add("tiny-draft:1", (shared_dir("models") / DRAFT).read_bytes())
    found = prove(read_file("main", main), name, backend, registry)
    assert (found.fits, found.basis, found.proved) == (None, "none", False)
    known = by_table(read_file("llama3.1:8b", main), "llama3.2:1b", "no parts")
    assert (known.fits, known.basis, known.proved) == (True, "table", False)
    assert "not proved: no parts" in known.reason


def test_a_fingerprint_of_the_table_proves_it(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read_file("llama3.1:8b", main)
    mark = fingerprint(read_file("d", shared_dir("models") / DRAFT).tokenizer)
    rows = load_draft_pairs()
    for text, expected in ((mark, True), (mark[:-1] + ("0" if mark[-1] != "0" else "1"), False)):
        marked = tuple(row.model_copy(update={"tokenizer_fingerprint": text}) for row in rows)
        monkeypatch.setattr("velollm.models.drafts.load_draft_pairs", lambda marked=marked: marked)
        found = by_table(source, "llama3.2:1b", "no parts")
        assert (found.fits, found.basis, found.proved) == (expected, "fingerprint", True)


def test_the_draft_to_get_is_the_best_of_the_table(main: Path) -> None:
    assert choose_name(read_file("qwen2.5-coder:32b", main)) == "qwen2.5-coder:0.5b"
    assert choose_name(read_file("llama3.1:8b", main)) == "llama3.2:1b"
    with pytest.raises(VeloError, match="no draft is known for my-own") as caught:
        choose_name(read_file("my-own", main))
    assert "ngram-mod" in caught.value.hint


def test_an_installed_model_is_read_from_its_file_else_as_the_server_shows_it(
    fake: FakeOllama, backend: OllamaBackend, main: Path, tmp_path: Path
) -> None:
    fake.store["mine:latest"] = StoredModel("mine")
    fake.files["mine:latest"] = blob(tmp_path, main)
    found = find_here("mine", backend)
    assert found is not None and found.basis == "file"
    assert find_here("absent", backend) is None
    shown = {
        "model_info": {"general.architecture": "llama", "tokenizer.ggml.model": "llama", TOKENS: ["a", "b", "é"]},
        "tensors": [{"name": "token_embd.weight", "type": "F16", "shape": [8, 3]}],
    }
    header = parse_shown(shown, "mine")
    assert header is not None and header.texts[TOKENS] == (b"a", b"b", "é".encode())
    assert parse_shown({**shown, "model_info": {"general.architecture": "llama"}}, "mine") is None
    # What was recorded is not verbose: a vocabulary is no part of it.
    fake.files.clear()
    with pytest.raises(VeloError, match="shows no vocabulary"):
        find_here("mine", backend)


def test_a_dflash_draft_is_proved_by_more_than_its_vocabulary(
    backend: OllamaBackend, registry: Registry, tmp_path: Path
) -> None:
    shape = get_family("llama:tiny").shape
    path = tmp_path / "main.gguf"
    write_model(path, draw_blueprint(shape, Recipe("q8_0")))
    source = read_file("main", path)
    for width, fits in ((shape.embedding_length, True), (512, False)):
        draft = write_dflash(tmp_path / f"{width}.gguf", replace(shape, embedding_length=width), None, unknown=400)
        proof = prove(source, str(draft), backend, registry)
        assert (proof.fits, proof.basis) == (fits, "headers")
        assert "states" in proof.reason
