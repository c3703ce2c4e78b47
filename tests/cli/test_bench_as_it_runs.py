"""`velollm bench` on servers that VeloLLM cannot start anew: one arm, as they run, and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator

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
