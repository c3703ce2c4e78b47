"""`velollm bench` on servers that VeloLLM cannot start anew: one arm, as they run, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_ollama import MODEL, FakeOllama, fake_ollama
from tests.program import document, run_cli


@pytest.fixture
def elsewhere() -> Iterator[FakeOllama]:
    """A server whose address is none of this machine's usual ones."""
    with fake_ollama("127.0.0.2") as server:
        yield server


def test_an_ollama_on_another_machine(elsewhere: FakeOllama) -> None:
    before = elsewhere.digests()
    done = run_cli("bench", MODEL, "--backend", "ollama", "--url", elsewhere.url, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert (found["backend"], found["arms"], found["ratio"]) == ("ollama", ["current"], {})
    assert found["runs"]
    assert all(run["error"] is None for run in found["runs"])
    assert "as it runs" in done.stderr
    assert "another machine" in done.stderr
    assert elsewhere.digests() == before


def test_without_json_there_is_one_column_and_no_ratio(elsewhere: FakeOllama) -> None:
    done = run_cli("bench", MODEL, "--url", elsewhere.url, "--quick")
    assert done.returncode == 0, done.stderr
    heading = next(line for line in done.stdout.splitlines() if line.split() == ["now"])
    assert heading
    assert "ratio" not in done.stdout.partition("knob")[0]


def test_any_server_with_the_openai_interface(fake: FakeOllama) -> None:
    done = run_cli("bench", f"{MODEL}:latest", "--url", f"{fake.url}/v1", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert (found["backend"], found["arms"], found["ratio"]) == ("openai", ["default"], {})
    assert found["runs"][0]["ttft_s"] > 0
    # One model alone needs no name.
    again = run_cli("bench", "--url", f"{fake.url}/v1", "--quick")
    assert again.returncode == 0, again.stderr
    assert f"taking {MODEL}:latest" in again.stderr


def test_every_workload_and_depth_is_a_comparison(fake: FakeOllama, tmp_path: Path) -> None:
    table, raw, page = tmp_path / "table.md", tmp_path / "raw.csv", tmp_path / "page.html"
    own = tmp_path / "own.yaml"
    own.write_text(
        "summary: s\nprompt_tokens: 16\ndecode_tokens: 8\naggregate_prompt_tokens: 16\naggregate_decode_tokens: 8\n"
        "rounds: 5\nrepeat_ratio: 0.0\nprompts:\n- Why is the sky blue?\n- Who made this bell?\n",
        encoding="utf-8",
    )
    written = ("--markdown", table, "--csv", raw, "--html", page)
    arguments = ("--workload", "chat", "--workload", str(own), "--rounds", "2", *written)
    done = run_cli("bench", "--url", f"{fake.url}/v1", "--budget", "20s", "--concurrency", "1,2", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert [result["workload"] for result in found["results"]] == ["chat", "own"]
    assert found["runs"] == found["results"][0]["runs"]
    assert {run["round"] for run in found["runs"]} == {0, 1}
    assert found["ratio"] == {}
    assert found["summary"]["default"]["aggregate_2"]["estimate"] > 0
    assert table.read_text(encoding="utf-8").count("\n## ") == 1
    assert raw.read_text(encoding="utf-8").startswith("depth_tokens,arm,")
    text = page.read_text(encoding="utf-8")
    assert '<h2 id="r1">chat</h2>' in text and '<h2 id="r2">own</h2>' in text
    assert f"{MODEL}:latest on the openai engine" in text
    asked = [json.dumps(body) for _, path, body in fake.requests if path == "/v1/chat/completions"]
    assert any("Who made this bell?" in text for text in asked)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--concurrency", "0"), "--concurrency takes whole numbers"),
        (("--concurrency", "two"), "not 'two'"),
        (("--depth", "-1"), "--depth takes"),
        (("--depth", "4k,9999k"), "not '9999k'"),
        (("--rounds", "some"), "--rounds takes"),
        (("--workload", "chess"), "there is no workload 'chess'"),
        (("--workload", "none.yaml"), "there is no workload 'none.yaml'"),
        (("--html", "none/page.html"), "there is no directory"),
        (("--csv", "."), "it is a directory"),
    ],
)
def test_what_cannot_be_measured_is_said(fake: FakeOllama, arguments: tuple[str, ...], words: str) -> None:
    done = run_cli("bench", "--url", f"{fake.url}/v1", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_the_history_and_not_the_figures(fake: FakeOllama, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "history.db").symlink_to("/dev/full")
    environ = {"VELOLLM_HOME": str(tmp_path)}
    done = run_cli("bench", "--url", f"{fake.url}/v1", "--quick", "--json", environ=environ)
    assert done.returncode == 0, done.stderr
    assert document(done)["runs"]
    (told,) = [line for line in done.stderr.splitlines() if "is not in the history" in line]
    assert "cannot write the history" in told
    assert "Traceback" not in done.stderr


def test_there_is_nothing_to_optimize_without_knobs(fake: FakeOllama) -> None:
    done = run_cli("bench", "m", "--backend", "openai")
    assert done.returncode == 1
    assert "--url" in done.stderr
    done = run_cli("bench", "m", "--backend", "embedded", "--url", fake.url)
    assert done.returncode == 2
    assert "takes no --url" in done.stderr


def test_a_dying_engine_is_a_failure_and_no_short_answer(fake: FakeOllama) -> None:
    fake.faults += ["stream just ends"] * 40
    done = run_cli("bench", f"{MODEL}:latest", "--url", f"{fake.url}/v1", "--quick")
    assert done.returncode == 1
    assert "the stream ended without its final message" in done.stderr
    assert "Traceback" not in done.stderr
