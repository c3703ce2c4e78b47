"""`velollm draft` as a program."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.fake_ollama import fake_ollama
from tests.fake_registry import fake_registry
from tests.program import document, one_error, run_cli
from tests.shared import shared_dir

NOWHERE = {"OLLAMA_HOST": "127.0.0.1:9"}


@pytest.fixture
def main() -> Path:
    return shared_dir("models") / "tiny-python-5m-f16.gguf"


@pytest.fixture
def draft() -> Path:
    return shared_dir("models") / "tiny-python-draft-f16.gguf"


def test_the_table_is_told_without_a_server() -> None:
    done = run_cli("draft", "list", "qwen2.5-coder:32b", environ=NOWHERE)
    assert done.returncode == 0, done.stderr
    assert "qwen2.5-coder:0.5b" in done.stdout
    assert "Apache-2.0" in done.stdout
    assert "[arithmetic]" in done.stdout
    assert "not here: nothing of this is proved" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_one_document_with_its_evidence(main: Path, draft: Path) -> None:
    found = document(run_cli("draft", "list", main, "--file", draft, "--json", environ=NOWHERE))
    (row,) = found["drafts"]
    assert row["here"] is True
    assert row["fits"]["fits"] is True
    assert row["acceptance"] is None
    assert row["gain"] is None
    assert found["left"]["kind"] == "draft"
    known = document(run_cli("draft", "list", "qwen2.5-coder:32b", "--json", environ=NOWHERE))
    told = {row["source"]: row for row in known["drafts"]}["qwen2.5-coder:3b"]
    assert told["acceptance"]["basis"] == "table"
    assert told["table"]["acceptance"][0]["source"] == "llama.cpp#10455"
    assert told["gain"]["evidence"] == "arithmetic"
    assert known["left"]["kind"] == "ngram"


def test_a_proof_from_two_files_and_an_exit_code(main: Path, draft: Path) -> None:
    done = run_cli("draft", "check", main, draft, environ=NOWHERE)
    assert done.returncode == 0
    assert "fits" in done.stdout
    assert "llama.cpp's own rule, from its file" in done.stdout


def test_what_does_not_fit_leaves_with_three(main: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    assert run_cli("synth", "qwen3:tiny", "-o", other).returncode == 0
    done = run_cli("draft", "check", main, other, "--json", environ=NOWHERE)
    assert done.returncode == 3
    found = document(done)
    assert (found["fits"], found["proved"], found["differs"]) == (False, True, "kind")
    assert found["fingerprints"]["draft"].startswith("SPM/")


def test_a_draft_is_got_after_a_yes(main: Path, draft: Path, tmp_path: Path) -> None:
    with fake_ollama() as fake, fake_registry() as server:
        name = server.add("tiny-draft:1", draft.read_bytes())
        fake.library.add(name)
        blob = tmp_path / "blobs" / f"sha256-{hashlib.sha256(draft.read_bytes()).hexdigest()}"
        blob.parent.mkdir()
        shutil.copy(draft, blob)
        fake.files[name.removeprefix("http://")] = blob
        environ = {"OLLAMA_HOST": fake.url}
        asked = run_cli("draft", "get", main, name, environ=environ)
        assert asked.returncode == 0, asked.stderr
        assert f"ollama pull {name}" in asked.stdout
        assert not fake.bodies("/api/pull")
        done = run_cli("draft", "get", main, name, "--yes", "--json", environ=environ)
        assert done.returncode == 0, done.stderr
        found = document(done)
        assert (found["done"], found["installed"], found["read_from"]["draft"]) == (True, True, "file")
        again = document(run_cli("draft", "get", main, name, "--yes", "--json", environ=environ))
        assert (again["done"], again["installed"]) == (False, True)
        assert len(fake.bodies("/api/pull")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("find", "llama3.1:8b"), "there is no 'find' of drafts"),
        (("check", "llama3.1:8b"), "check needs a draft"),
        (("list", "never-heard-of"), "no model 'never-heard-of'"),
        (("get", "llama3.1:8b"), "does not answer"),
        (("list", "absent.gguf"), "cannot read absent.gguf"),
        (("list", "llama3.1:8b", "--file", "absent.gguf"), "cannot read absent.gguf"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], message: str) -> None:
    error, _ = one_error(run_cli("draft", *arguments, environ=NOWHERE))
    assert message in error
