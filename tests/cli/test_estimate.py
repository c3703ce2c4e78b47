"""`velollm estimate` from the outside."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama
from tests.models.files import write_gguf
from tests.program import document, one_error, run_cli
from tests.shared import shared_dir
from velollm.units import GIB

PARTS = ("weights", "repack", "kv", "recurrent", "compute", "output", "draft", "picture")


def estimated(*arguments: str) -> dict[str, Any]:
    return document(run_cli("estimate", *arguments, "--json"))


def test_one_document_with_the_sums_of_its_parts(tiny: Path) -> None:
    found = estimated(str(tiny), "--context", "4096", "--slots", "2")
    assert list(found) == ["schema_version", "devices", "total_bytes", "prompt_cache_bytes", "source"]
    assert (found["schema_version"], found["prompt_cache_bytes"]) == (1, 8 * GIB)
    for device in found["devices"]:
        assert list(device) == ["device", *(f"{part}_bytes" for part in PARTS), "total_bytes", "basis"]
        assert device["total_bytes"] == sum(device[f"{part}_bytes"] for part in PARTS)
        assert device["basis"] == "arithmetic"
    assert found["devices"][0]["device"] == "CPU"
    assert found["total_bytes"] == sum(device["total_bytes"] for device in found["devices"])


def test_a_file_is_taken_as_llama_cpp_takes_it(tiny: Path) -> None:
    plain = estimated(str(tiny))
    spelled = ("--context", "8192", "--slots", "1", "--kv", "f16", "--batch", "2048", "--ubatch", "512")
    assert plain == estimated(str(tiny), *spelled, "--load-mode", "mmap", "--backend", "llamacpp")
    assert plain != estimated(str(tiny), *spelled, "--load-mode", "none")


def test_a_model_whose_file_cannot_be_read_is_taken_as_its_server_shows_it(fake: FakeOllama) -> None:
    environ = {"OLLAMA_HOST": fake.url}
    found = document(run_cli("estimate", "tiny-python", "--context", "2048", "--json", environ=environ))
    assert found["source"] == "server"
    file = shared_dir("models") / "tiny-python-5m-f16.gguf"
    flags = ("--context", "2048", "--backend", "ollama")
    by_file = estimated(str(file), *flags)
    assert by_file["source"] == "file"
    # The recorded list of tensors is that of this very file.
    assert found["devices"] == by_file["devices"]
    text = run_cli("estimate", "tiny-python", environ=environ)
    assert "what the Ollama server shows of the model" in " ".join(text.stdout.split())
    error, _ = one_error(run_cli("estimate", "absent:1b", environ=environ))
    assert "there is no model 'absent:1b'" in error
    assert document(run_cli("estimate", "llama3.2:1b", "--json", environ=environ))["source"] == "catalog"


def test_an_ollama_name_is_taken_as_ollama_takes_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    blob = tmp_path / "blobs" / f"sha256-{digest}"
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "made" / "latest"
    for path in (blob, manifest):
        path.parent.mkdir(parents=True)
    shutil.copyfile(tiny, blob)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    asked = ("--context", "8192", "--slots", "4")
    # 32,768 tokens in all: Ollama takes steps of 1,024.
    explicit = (*asked, "--batch", "1024", "--ubatch", "1024", "--load-mode", "none")
    ollama = estimated("made", *asked, "--gpu-layers", "0")
    assert ollama["devices"][0] == estimated(str(tiny), *explicit, "--gpu-layers", "0")["devices"][0]


def test_options_change_the_parts_that_they_are_for(tiny: Path) -> None:
    base = estimated(str(tiny), "--context", "8192", "--gpu-layers", "0")["devices"][0]

    def changed(*arguments: str) -> set[str]:
        other = estimated(str(tiny), "--context", "8192", "--gpu-layers", "0", *arguments)["devices"][0]
        return {part for part in PARTS if base[f"{part}_bytes"] != other[f"{part}_bytes"]}

    assert changed("--kv-k", "q4_0") == {"kv"}
    assert {"kv", "output"} <= changed("--slots", "3") <= {"kv", "compute", "output"}
    assert changed("--ubatch", "64") == {"compute"}
    assert "draft" in changed("--draft", str(tiny))


def test_the_table_fits_a_narrow_terminal(tiny: Path) -> None:
    done = run_cli("estimate", str(tiny), "--context", "4096", "--load-mode", "none")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("weights", "KV cache", "computing", "total", "arithmetic", "prompt cache", "Not counted"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-model",), "there is no model 'no-such-model'"),
        (("absent.gguf",), "cannot read absent.gguf"),
        (("MODEL", "--kv", "q9_9"), "kv_type_k is one of"),
        (("MODEL", "--load-mode", "fast"), "load_mode is one of"),
        (("MODEL", "--basis", "guess"), "--basis is auto, arithmetic or engine"),
        (("MODEL", "--draft", "no-such-draft"), "there is no model 'no-such-draft'"),
        (("MODEL", "--basis", "engine", "--backend", "none"), "there is no backend 'none'"),
        (("MODEL", "--basis", "engine", "--hardware", "x.yaml"), "x.yaml"),
        (("MODEL", "--projector", "absent.gguf"), "cannot read absent.gguf"),
        (("MODEL", "--projector", "MODEL", "--basis", "engine"), "not with a projector of its own"),
    ],
)
def test_what_a_user_can_do_wrong(tiny: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run_cli("estimate", *(str(tiny) if word == "MODEL" else word for word in arguments))
    assert done.returncode != 0
    assert words in one_error(done)[0]


def test_a_damaged_file_and_an_unknown_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF damaged")
    assert "not a usable GGUF model" in one_error(run_cli("estimate", str(path)))[0]
    write_gguf(path, [("general.architecture", "llama"), ("llama.context_length", 4096)])
    assert "does not tell layers, embedding_length" in one_error(run_cli("estimate", str(path)))[0]
    write_gguf(path, [("general.architecture", "kimi-linear"), ("kimi-linear.context_length", 4096)])
    assert "cannot be worked out" in one_error(run_cli("estimate", str(path)))[0]


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine is not installed")
def test_an_engine_is_asked_and_remembered(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELOLLM_HOME", str(tmp_path))
    asked = (str(tiny), "--backend", "embedded", "--context", "512")
    (device,) = estimated(*asked, "--basis", "engine")["devices"]
    (worked_out,) = estimated(*asked, "--basis", "arithmetic")["devices"]
    assert device["basis"] == "engine"
    assert device["kv_bytes"] == worked_out["kv_bytes"]
    assert device["compute_bytes"] == pytest.approx(worked_out["compute_bytes"], rel=0.2)
    kept = json.loads((tmp_path / "data" / "memory.json").read_text(encoding="utf-8"))
    (load,) = kept["loads"].values()
    assert load["source"] == "log"
    assert load["factors"]["compute"] == pytest.approx(device["compute_bytes"] / worked_out["compute_bytes"], rel=1e-3)
    # From then on the arithmetic is corrected for this engine, unless it is asked for alone, and says so.
    (better,) = estimated(*asked)["devices"]
    assert better["basis"] == "corrected"
    assert better["compute_bytes"] == pytest.approx(device["compute_bytes"], rel=0.01)
    assert estimated(*asked, "--basis", "arithmetic")["devices"] == [worked_out]
    (other,) = estimated(str(tiny), "--backend", "llamacpp", "--context", "512")["devices"]
    assert other["basis"] == "arithmetic"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine is not installed")
def test_an_engine_is_asked_with_a_draft_and_a_placement(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELOLLM_HOME", str(tmp_path))
    asked = (str(tiny), "--backend", "embedded", "--context", "512", "--draft", str(tiny), "--cpu-ffn-layers", "1")
    (device,) = estimated(*asked, "--basis", "engine")["devices"]
    (worked_out,) = estimated(*asked, "--basis", "arithmetic")["devices"]
    assert (device["basis"], device["kv_bytes"]) == ("engine", worked_out["kv_bytes"])
    assert device["draft_bytes"] == pytest.approx(worked_out["draft_bytes"], rel=0.2)
