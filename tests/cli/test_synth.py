"""`velollm synth` as a user starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.program import PATIENCE_S, document, one_error, program_environ, run_cli
from velollm.models.gguf import model_facts, read_gguf


def test_a_model_is_made_and_told(tmp_path: Path) -> None:
    done = run_cli("synth", "qwen3:tiny", "--predictability", "0.8", "--period", "16", "-o", tmp_path / "m.gguf")
    assert done.returncode == 0
    assert "its text is chosen: each token has one that follows it with probability 0.8" in done.stdout
    assert "an assumption of yours" in done.stdout
    drafted = document(run_cli("synth", "--drafts-for", tmp_path / "m.gguf", "--json", cwd=tmp_path))
    assert drafted["path"] == "m-draft.gguf"
    assert drafted["made"]["agreement"] == 0.8
    facts = model_facts(read_gguf(tmp_path / "m-draft.gguf"), "draft")
    assert (drafted["file_bytes"], drafted["vocab"]) == (facts.file_bytes, 2048)


def test_a_twin_of_a_file(tmp_path: Path) -> None:
    run_cli("synth", "gemma3:tiny", "-o", tmp_path / "first.gguf")
    twin = document(run_cli("synth", "--like", tmp_path / "first.gguf", "-o", tmp_path / "twin.gguf", "--json"))
    assert twin["made"]["like"] == str(tmp_path / "first.gguf")
    assert read_gguf(tmp_path / "twin.gguf").tensors == read_gguf(tmp_path / "first.gguf").tensors


def test_wrong_words_leave_nothing(tmp_path: Path) -> None:
    for arguments, words, code in (
        (("qwen3:9b",), "known sizes: qwen3:0.6b", 1),
        (("qwen3:tiny", "--agreement", "0.5"), "--drafts-for", 2),
        (("qwen3:tiny", "-o", "no/such/place.gguf"), "choose a place", 1),
        (("--like", "absent.gguf"), "path of a .gguf file", 1),
    ):
        done = run_cli("synth", *arguments, cwd=tmp_path)
        error, hint = one_error(done)
        assert done.returncode == code, error
        assert words in hint, hint
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "velollm",
        "synth",
        "llama3.2:1b",
        "--quant",
        "f16",
        "-o",
        str(tmp_path / "m.gguf"),
    ]
    with subprocess.Popen(command, env=program_environ(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "making m.gguf" in line)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) != 0
        assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
