"""Drafts through a real Ollama: pulled from a registry on loopback, proved, and taken by the engine, or not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.doctor_server import checks_of, patient
from tests.fake_registry import FakeRegistry, fake_registry
from tests.real_ollama import MODEL, RealOllama, served
from tests.shared import shared_dir
from velollm.models.families import get_family
from velollm.models.header import read_gguf
from velollm.models.succession import Succession
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.models.tokenizer import TOKENS, compare_tokenizers, read_tokenizer

pytestmark = pytest.mark.ollama


ollama = pytest.fixture(scope="module")(served)


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as found:
        yield found


def velollm(ollama: RealOllama, home: Path, *words: str) -> tuple[int, dict[str, object], str]:
    argv = [sys.executable, "-m", "velollm", "draft", *words, "--json"]
    done = subprocess.run(argv, env=ollama.environ(home), capture_output=True, timeout=120, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_draft_comes_from_a_registry_and_is_proved_twice(
    ollama: RealOllama, server: FakeRegistry, tmp_path: Path
) -> None:
    weights = (shared_dir("models") / "tiny-python-draft-f16.gguf").read_bytes()
    name = server.add("tiny-draft:1", weights)
    status, found, _ = velollm(ollama, tmp_path, "check", MODEL, name)
    assert (status, found["fits"], found["read_from"]) == (0, True, {"model": "file", "draft": "registry"})
    assert not any(name.endswith("tiny-draft:1") for name in ollama.digests())
    status, found, errors = velollm(ollama, tmp_path, "get", MODEL, name, "--yes")
    assert status == 0, errors
    assert (found["done"], found["read_from"]) == (True, {"model": "file", "draft": "file"})
    assert name.removeprefix("http://") in ollama.digests()
    status, found, _ = velollm(ollama, tmp_path, "list", MODEL)
    drafts = found["drafts"]
    assert isinstance(drafts, list)
    assert [(row["source"], row["fits"]["fits"]) for row in drafts] == [(name.removeprefix("http://"), True)]


def test_a_wrong_vocabulary_never_comes(ollama: RealOllama, server: FakeRegistry, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    write_model(other, draw_blueprint(replace(get_family("qwen3:tiny").shape, layers=1), Recipe("q4_0")))
    name = server.add("other:1", other.read_bytes())
    before = ollama.tree()
    status, _, errors = velollm(ollama, tmp_path, "get", MODEL, name, "--yes")
    assert status == 1
    assert "the draft's tokenizer is SPM, the model's BPE" in errors
    assert ollama.tree() == before


def test_a_broken_download_is_an_error_and_leaves_no_model(
    ollama: RealOllama, server: FakeRegistry, tmp_path: Path
) -> None:
    weights = (shared_dir("models") / "tiny-python-draft-f16.gguf").read_bytes() + bytes(32)  # a blob of its own
    name = server.add("broken:1", weights)
    digest = next(digest for digest, data in server.blobs.items() if data == weights)
    server.blobs[digest] = weights[:-1] + b"\x01"
    status, _, errors = velollm(ollama, tmp_path, "get", MODEL, name, "--yes")
    assert status == 1
    assert "digest mismatch" in errors
    assert name.removeprefix("http://") not in ollama.digests()


def test_what_the_server_shows_proves_as_well_as_the_file(ollama: RealOllama) -> None:
    from velollm.draft.sources import parse_shown, read_file
    from velollm.models.tokenizer import fingerprint, tokenizer_of

    reply = httpx.post(f"{ollama.url}/api/show", json={"model": MODEL, "verbose": True}, trust_env=False)
    header = parse_shown(reply.json(), MODEL)
    assert header is not None
    file = read_file(MODEL, shared_dir("models") / "tiny-python-5m-f16.gguf")
    assert fingerprint(tokenizer_of(header)) == fingerprint(file.tokenizer)


@pytest.mark.parametrize(("token", "fits"), [(1500, False), (3, True)])
def test_the_engine_agrees_with_the_rule(ollama: RealOllama, tmp_path: Path, token: int, fits: bool) -> None:
    main, draft = (shared_dir("models") / f"tiny-python-{name}-f16.gguf" for name in ("5m", "draft"))
    changed = tmp_path / "changed.gguf"
    text = read_gguf(draft, texts=frozenset({TOKENS})).texts[TOKENS][token]
    written = len(text).to_bytes(8, "little") + text
    other = len(text).to_bytes(8, "little") + bytes(len(text) - 1) + b"!"
    changed.write_bytes(draft.read_bytes().replace(written, other, 1))
    found = compare_tokenizers(read_tokenizer(main), read_tokenizer(changed))
    assert (found.fits, found.token) == (fits, None if fits else token)
    chosen = {"LLAMA_ARG_SPEC_TYPE": "draft-simple", "LLAMA_ARG_SPEC_DRAFT_MODEL": str(changed)}
    with patient(tmp_path / "server", ollama.models, **chosen) as server:
        assert server.ask() == 200
        log = server.log.read_text(errors="replace")
    assert ("the target and draft vocabs are not compatible" in log) is not fits
    assert ("speculative decoding context initialized" in log) is fits


def test_a_draft_that_is_seldom_right_is_found_and_turned_off(ollama: RealOllama, tmp_path: Path) -> None:
    shape = replace(get_family("qwen3:tiny").shape, layers=4)
    main, draft = tmp_path / "main.gguf", tmp_path / "draft.gguf"
    write_model(main, draw_blueprint(shape, Recipe("q4_0", succession=Succession(0.9, 64))))
    write_model(draft, draw_blueprint(shape, Recipe("q4_0", succession=Succession(0.9, 64, agreement=0.02))))
    chosen = {"LLAMA_ARG_SPEC_TYPE": "draft-simple", "LLAMA_ARG_SPEC_DRAFT_MODEL": str(draft)}
    # With a thread for each core a busy neighbour would hold up every pass.
    with patient(tmp_path / "server", ollama.models, **chosen, LLAMA_ARG_THREADS="1") as server:
        digest = f"sha256:{hashlib.sha256(main.read_bytes()).hexdigest()}"
        server.client.post(f"/api/blobs/{digest}", content=main.read_bytes()).raise_for_status()
        made = {"model": "made", "files": {"made.gguf": digest}, "stream": False}
        server.client.post("/api/create", json=made).raise_for_status()
        for number in range(5):
            assert server.ask("made", tokens=25, prompt=f"the {number} ", temperature=0) == 200
        told = server.doctor("--fix", "--yes")
        before = checks_of(told["mended"]["before"])["acceptance-low"]
        assert before["severity"] == "warning"
        assert before["mend"]["variables"] == dict.fromkeys(chosen)
        assert "guessing ahead (draft-simple) does not pay" in before["title"]
        assert any("so it pays above" in item["value"] for item in before["evidence"])
        assert "acceptance-low" not in checks_of(told["findings"])
        assert told["mended"]["restarted"] is True
        assert not chosen.keys() & told["facts"]["server"]["environment"].keys()
        assert server.ask("made", tokens=4) == 200
