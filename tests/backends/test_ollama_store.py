from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.gguf_files import find_gguf
from velollm.backends.ollama_store import (
    MODEL_LAYER,
    ModelName,
    default_model_dirs,
    find_ollama_blob,
    installed_models,
    parse_manifest,
    parse_model_name,
)
from velollm.errors import VeloError

DIGEST = "ab" * 32


def install(models: Path, name: str) -> Path:
    full = parse_model_name(name)
    assert full is not None
    manifest = models / full.manifest_path
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": MODEL_LAYER, "digest": f"sha256:{DIGEST}", "size": 4}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [{"mediaType": "x", "digest": "y"}, layer]}))
    blob = models / "blobs" / f"sha256-{DIGEST}"
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF")
    return blob


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama3", ModelName("registry.ollama.ai", "library", "llama3", "latest")),
        ("llama3:8b", ModelName("registry.ollama.ai", "library", "llama3", "8b")),
        ("me/own:q4", ModelName("registry.ollama.ai", "me", "own", "q4")),
        ("hf.co/me/own:Q4_K_M", ModelName("hf.co", "me", "own", "Q4_K_M")),
        ("host:5000/me/own", ModelName("host:5000", "me", "own", "latest")),
    ],
)
def test_names(text: str, name: ModelName) -> None:
    assert parse_model_name(text) == name


@pytest.mark.parametrize("text", ["", "../etc/passwd", "a/b/c/d", "a//b", "name:", ".hidden"])
def test_no_names(text: str) -> None:
    assert parse_model_name(text) is None


@given(st.text(max_size=60))
def test_no_name_leads_out_of_the_store(text: str) -> None:
    name = parse_model_name(text)
    if name is not None:
        assert ".." not in name.manifest_path.parts


@given(st.text(max_size=200))
def test_manifest_parser_never_raises(text: str) -> None:
    assert parse_manifest(text) is None


def test_blob_of_an_installed_model(tmp_path: Path) -> None:
    blob = install(tmp_path, "llama3:8b")
    assert find_ollama_blob("llama3:8b", tmp_path) == blob
    assert find_ollama_blob("llama3", tmp_path) is None
    blob.unlink()
    assert find_ollama_blob("llama3:8b", tmp_path) is None


def test_the_users_store_is_looked_at_by_name(own_home: Path) -> None:
    blob = install(own_home / ".ollama" / "models", "tiny")
    assert find_gguf("tiny").path == blob
    with pytest.raises(VeloError, match="no model 'other'"):
        find_gguf("other")


def test_models_directory_of_the_environment_comes_first() -> None:
    assert default_model_dirs({"OLLAMA_MODELS": "/m"}, Path("/h"))[:2] == (Path("/m"), Path("/h/.ollama/models"))


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="is a directory"):
        find_gguf(str(tmp_path))


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(VeloError, match="there is no model"):
        find_gguf("/nowhere/model.gguf")


def test_installed_models_are_listed_by_ollamas_names(tmp_path: Path) -> None:
    assert list(installed_models(tmp_path)) == []
    blob = install(tmp_path, "127.0.0.1:5000/library/made:1")
    for name in ("qwen3:0.6b", "someone/thing", "hf.co/owner/model:Q8_0"):
        full = parse_model_name(name)
        assert full is not None
        manifest = tmp_path / full.manifest_path
        manifest.parent.mkdir(parents=True)
        manifest.write_bytes((tmp_path / "manifests/127.0.0.1:5000/library/made/1").read_bytes())
    (tmp_path / "manifests/hf.co/owner/model/broken").write_text("{")
    names = ["127.0.0.1:5000/library/made:1", "hf.co/owner/model:Q8_0", "qwen3:0.6b", "someone/thing:latest"]
    assert sorted(installed_models(tmp_path)) == [(name, blob) for name in names]
