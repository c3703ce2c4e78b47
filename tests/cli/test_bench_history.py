"""The history on the command line: list, show, compare, since, export, import."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bench.test_apart import record, samples
from tests.program import run_cli
from velollm.bench.history import append_record, append_records, read_history
from velollm.cli import run_app
from velollm.cli.bench_history import print_trends, trends_to
from velollm.config import user_paths


@pytest.fixture
def data(own_home: Path) -> Path:
    """A history with two versions of Ollama, the newer one slower."""
    directory = user_paths().data
    append_records(directory, [record(1), record(2), record(9, "0.33.0", samples(0.75), model="/models/mine.gguf")])
    return directory


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert run_app([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        assert "Traceback" not in err
        return str(err)
    return " ".join(str(out).split())


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run_app([*map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_no_results_yet(capsys: pytest.CaptureFixture[str], own_home: Path) -> None:
    assert "No results yet" in said(capsys, "bench", "--list")
    assert told(capsys, "bench", "--list") == {"schema_version": 1, "results": [], "trends": [], "damaged": 0}
    assert "there is no result yet" in said(capsys, "bench", "--show", "last", code=2)
    assert "there is no result yet" in said(capsys, "export", "--last", code=2)
    assert not user_paths().data.exists()


def test_the_list_tells_what_a_version_changed(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    text = said(capsys, "bench", "--list")
    assert all(part in text for part in ("20260301-120000-000001", "Ollama 0.32.1", "mine.gguf", "19.9"))
    assert "/models" not in text
    assert "prefill fell 25%" in text and "since Ollama 0.32.1" in text
    found = told(capsys, "bench", "--list")
    assert [result["id"][:8] for result in found["results"]] == ["20260301", "20260302", "20260309"]
    assert found["results"][0]["summary"]["default"]["decode"]["values"] == 10
    (trend,) = found["trends"]
    assert trend["ratios"]["prefill"]["verdict"] == "slower"
    assert trend["ratios"]["prefill"]["floor_basis"] == "apart"


def test_after_a_bench_it_is_said_what_the_version_changed(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    newest = read_history(data).records[-1]
    (trend,) = trends_to([newest])
    print_trends([trend])
    assert "prefill fell 25%" in capsys.readouterr().out
    assert trends_to([record(10, "0.34.0", machine="another")]) == ()
    (data / "history.db").write_bytes(b"no database at all" * 99)
    assert trends_to([newest]) == ()
    print_trends(())
    assert capsys.readouterr().out == ""


def test_the_list_of_one_model(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert len(told(capsys, "bench", "mine.gguf", "--list")["results"]) == 1
    assert told(capsys, "bench", "llama3.2", "--list")["trends"] == []
    assert said(capsys, "bench", "other", "--list") == "No results."


def test_since(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    found = told(capsys, "bench", "--since", "0.33")
    assert (len(found["results"]), found["trends"]) == (1, [])
    found = told(capsys, "bench", "--since", "2026-01-01", "--list")
    assert (len(found["results"]), len(found["trends"])) == (3, 1)
    assert "--since takes a date" in said(capsys, "bench", "--since", "soon", code=2)


def test_show_is_what_was_measured(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    text = said(capsys, "bench", "--show", "20260309")
    assert "mine.gguf on Ollama 0.33.0, chat, 2026-03-09 12:00:00 UTC" in text
    assert "threads" in text
    files = [tmp_path / name for name in ("a.md", "a.csv", "a.txt")]
    arguments = [part for pair in zip(("--markdown", "--csv", "--benchstat"), files, strict=True) for part in pair]
    found = told(capsys, "bench", "--show", "last", *arguments)
    assert (found["id"], found["engine_version"], found["sizes"]) == ("20260309-120000-000009", "0.33.0", None)
    assert len(found["runs"]) == 10
    assert found["knobs"] == {"default": {"threads": 4}}
    assert all(path.read_text(encoding="utf-8") for path in files)
    error = said(capsys, "bench", "--show", "last", "--html", tmp_path / "a.html", code=2)
    assert "a page is made when a result is taken" in error
    assert not (tmp_path / "a.html").exists()


def test_compare(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    text = said(capsys, "bench", "--compare", "20260301", "last")
    assert "did not take turns" in text and "nothing below 10% is called a difference" in text
    assert "They differ in engine: ollama 0.32.1, then ollama 0.33.0." in text
    assert "slower" in text
    found = told(capsys, "bench", "--compare", "20260301", "20260302")
    assert (found["interleaved"], found["differences"]) == (False, [])
    (arm,) = found["arms"]
    assert arm["ratio"]["decode"]["estimate"] == pytest.approx(1.0)
    assert "there is no result '1999'" in said(capsys, "bench", "--compare", "1999", "last", code=2)
    assert "several results" in said(capsys, "bench", "--compare", "2026", "last", code=2)


def test_one_look_at_a_time(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert "one look at a time" in said(capsys, "bench", "--list", "--show", "last", code=2)


def test_a_damaged_history_is_told_in_one_line(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    (data / "history.db").write_bytes(b"no database at all" * 99)
    for arguments in (("bench", "--list"), ("bench", "--show", "last"), ("export", "--last")):
        error = said(capsys, *arguments, code=1)
        assert "is damaged" in error.splitlines()[0]
        assert error.splitlines()[1].startswith("Hint: ")
    assert said(capsys, "history") == "No flights yet: `velollm optimize` makes the first."


def test_export_and_import(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    said(capsys, "export", "20260301", "--last", "-o", file)
    text = file.read_text(encoding="utf-8")
    assert "mine" not in text and "llama3.2" in text
    assert run_app(["export", "20260301", "--last"]) == 0
    assert capsys.readouterr().out == text
    assert told(capsys, "import", file)["already"] == ["20260301-120000-000001", "20260309-120000-000009"]

    monkeypatch.setenv("VELOLLM_HOME", str(tmp_path / "other"))
    assert "imported: 20260301-120000-000001: llama3.2:3b on Ollama 0.32.1" in said(capsys, "import", file)
    assert told(capsys, "import", file)["imported"] == []
    history = read_history(user_paths().data)
    assert (len(history.records), len(history.imported)) == (0, 2)
    listed = told(capsys, "bench", "--list")
    assert [result["origin"] for result in listed["results"]] == ["imported"] * 2
    assert listed["trends"] == []
    append_record(user_paths().data, record(8, "0.33.0", samples(2.0)))
    assert "(another machine's)" in said(capsys, "bench", "--compare", "20260301", "last")


def test_what_cannot_be_exported_or_imported(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    assert "name a result" in said(capsys, "export", code=2)
    assert "there is no result" in said(capsys, "export", "1999", code=2)
    assert "there is no directory" in said(capsys, "export", "--last", "-o", tmp_path / "no" / "x", code=2)
    assert "cannot read" in said(capsys, "import", tmp_path / "none.json", code=2)
    assert "cannot read" in said(capsys, "import", tmp_path, code=2)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"format": "velollm-result", "schema_version": 7}', encoding="utf-8")
    assert "newer VeloLLM" in said(capsys, "import", wrong, code=1)
    assert len(read_history(data).all) == 3


def test_neither_this_user_nor_this_machine_is_in_an_export(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"os": "linux", "cpu": {"model_name": "Zeppelin 9000"}, "gpus": [{"name": "Alice RTX"}]}
    append_record(data, record(10, facts=facts))
    environ = {"USER": "alice", "HOSTNAME": "zeppelin.example.org"}
    done = run_cli("export", "--last", environ=environ)
    assert done.returncode == 0, done.stderr
    assert "Zeppelin" not in done.stdout and "Alice" not in done.stdout
    assert "Zeppelin 9000" in run_cli("export", "--last", environ={"USER": "bob", "HOSTNAME": "x"}).stdout


@pytest.mark.skipif(shutil.which("benchstat") is None, reason="needs Go's benchstat on PATH")
def test_benchstat_reads_what_is_written_for_it(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    said(capsys, "export", "20260301", "--format", "benchstat", "-o", old)
    said(capsys, "export", "20260309", "--format", "benchstat", "-o", new)
    argv = ["benchstat", "-ignore", "model", str(old), str(new)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    assert "prefill-tok/s" in done.stdout
    assert "-25.00%" in done.stdout
    assert "n=10" in done.stdout
