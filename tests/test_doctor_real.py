"""Findings provoked on a real Ollama: shown by `velollm doctor`, mended by `--fix` where it may, and gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.doctor_server import Patient, checks_of, patient
from tests.real_ollama import MODEL, real_ollama
from tests.shared import shared_dir
from velollm.bench.history import Record

pytestmark = pytest.mark.ollama


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models directory with the one model in it."""
    with real_ollama(tmp_path_factory.mktemp("store")) as found:
        yield found.models


@pytest.fixture(scope="session")
def healthy(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """A server as it is installed, with nothing set."""
    with patient(tmp_path_factory.mktemp("healthy"), store) as found:
        yield found


def test_a_default_server_has_nothing_to_mend(healthy: Patient) -> None:
    assert healthy.ask() == 200
    told = healthy.doctor()
    # What this machine has by itself (a busy neighbour, little memory) is no fault of the server's.
    host = {"busy-neighbours", "memory-available", "swap", "thermal-throttling", "container-limits", "battery"}
    host |= {"power-mode", "governor", "gpu-driver", "gpu-unused", "machine-changed", "thread-count"}
    grave = {finding["check"] for finding in told["findings"] if finding["severity"] != "note"}
    assert grave <= host
    assert told["facts"]["server"]["managed"] == "velollm run"
    assert told["facts"]["server"]["activity"]["engine"]["load_s"] > 0


ENVIRONMENTS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"LLAMA_ARG_THREADS": "many"}, {"llama-environment": "critical", "models-not-loading": "critical"}),
    ({"LLAMA_ARG_DRAFT_MAX": "8"}, {"llama-environment": "critical", "models-not-loading": "critical"}),
    (
        {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
        {"kv-cache-type": "critical", "models-not-loading": "critical"},
    ),
    ({"OLLAMA_KV_CACHE_TYPE": "q9"}, {"kv-cache-type": "critical", "models-not-loading": "critical"}),
    ({"LLAMA_ARG_SPEC_TYPE": "draft-mtp"}, {"llama-environment": "warning", "models-not-loading": "critical"}),
    (
        {
            "OLLAMA_FLASH_ATTENTION": "auto",
            "OLLAMA_GPU_OVERHEAD": "1000000000",
            "LLAMA_ARG_CACHE_REUSED": "256",
            "OMP_NUM_THREADS": str(4 * (os.cpu_count() or 1)),
            "OLLAMA_KEEP_ALIVE": "0",
        },
        {
            "ollama-environment": "warning",
            "llama-names": "note",
            "thread-count": "warning",
            "keep-alive-short": "warning",
        },
    ),
]


@pytest.mark.parametrize(
    ("variables", "expected"), [pytest.param(*case, id=" ".join(case[0])) for case in ENVIRONMENTS]
)
def test_an_environment_is_found_mended_and_gone(
    store: Path, tmp_path: Path, variables: dict[str, str], expected: Mapping[str, str]
) -> None:
    with patient(tmp_path, store, **variables) as server:
        stopped = "models-not-loading" in expected
        for _ in range(1 if stopped else 4):
            assert server.ask() == (500 if stopped else 200)
        told = server.doctor("--fix", "--yes")
        before, after = checks_of(told["mended"]["before"]), checks_of(told["findings"])
        for name, severity in expected.items():
            assert before[name]["severity"] in (severity, "warning"), name
            assert before[name]["why"]
            assert name not in after, after.get(name)
        places = {item["where"] for name in set(expected) - {"models-not-loading"} for item in before[name]["evidence"]}
        assert any(place.startswith("/proc/") and place.endswith("/environ") for place in places)
        assert told["mended"]["restarted"] is True
        assert told["mended"]["still"] == []
        assert server.ask() == 200


def test_what_a_shell_sets_reaches_the_server_by_fix(store: Path, tmp_path: Path) -> None:
    with patient(tmp_path, store) as server:
        told = server.doctor("--fix", "--yes", OLLAMA_NUM_PARALLEL="2")
        assert checks_of(told["mended"]["before"])["environment-ineffective"]["severity"] == "warning"
        assert "environment-ineffective" not in checks_of(told["findings"])
        assert told["facts"]["server"]["environment"]["OLLAMA_NUM_PARALLEL"] == "2"


def test_requests_leave_their_findings_in_the_log(healthy: Patient) -> None:
    for context in (1024, 512, 1024, 512):
        assert healthy.ask(num_ctx=context, num_batch=512) == 200
    for batch in (256, 512, 256):
        assert healthy.ask(num_ctx=512, num_batch=batch) == 200
    assert healthy.ask(prompt="import os\n" * 400, num_ctx=512, num_batch=256) == 200
    found = checks_of(healthy.doctor()["findings"])
    assert found["mixed-context"]["severity"] == "warning"
    assert "512 and 1,024" in found["mixed-context"]["title"]
    assert found["mixed-context"]["mend"]["parameters"]["num_ctx"] >= 1024
    assert found["reload-thrash"]["severity"] == "warning"
    assert "num_batch" in found["reload-thrash"]["title"]
    assert found["context-truncated"]["severity"] in ("warning", "note")
    assert "1,200 tokens" in found["context-truncated"]["title"]


def test_models_that_cannot_load_are_found_and_mended(store: Path, tmp_path: Path) -> None:
    with patient(tmp_path, store) as server:
        server.create("broken", parameters={"num_ctx": "1024"})
        server.create("longer", parameters={"num_ctx": 1024})
        draft = (shared_dir("models") / "tiny-python-draft-f16.gguf").read_bytes()
        digest = f"sha256:{hashlib.sha256(draft).hexdigest()}"
        server.client.post(f"/api/blobs/{digest}", content=draft).raise_for_status()
        server.create("drafted", draft_files={"draft.gguf": digest})
        assert server.ask("broken") == 500
        assert server.ask("drafted") == 500
        told = server.doctor("--fix", "--yes")
        broken = [finding for finding in told["mended"]["before"] if finding["check"] == "model-broken"]
        assert {finding["title"].partition(":")[0] for finding in broken} == {"broken", "drafted"}
        assert "shared-blob" in checks_of(told["mended"]["before"])
        left = [finding["title"] for finding in told["findings"] if finding["check"] == "model-broken"]
        assert [title.partition(":")[0] for title in left] == ["drafted"]
        assert server.ask("broken") == 200


def test_what_is_around_a_server(healthy: Patient) -> None:
    assert healthy.ask() == 200
    one_cpu = sorted(os.sched_getaffinity(0))[:1]
    assert "cpu-affinity" in checks_of(healthy.doctor(affinity=one_cpu)["findings"])
    gone = healthy.doctor(OLLAMA_HOST="127.0.0.1:1")
    assert checks_of(gone["findings"])["ollama-unreachable"]["fix"]


def test_a_machine_that_changed_since_it_was_measured(healthy: Patient) -> None:
    facts = healthy.doctor()["facts"]
    data = healthy.home / "velollm" / "data"
    data.mkdir(parents=True, exist_ok=True)
    half = facts["memory"]["total_bytes"] // 2
    then: dict[str, object] = {"memory": {"total_bytes": half}, "server": {"engine": "ollama", "version": "0.30.0"}}
    when = "2026-10-01T08:00:00+00:00"
    known = {"id": "1", "taken_at": when, "model": MODEL, "backend": "ollama", "workload": "chat"}
    record = Record.model_validate({**known, "quick": True, "facts": then, "knobs": {}, "samples": ()})
    history = data / "history.jsonl"
    history.write_text(record.model_dump_json() + "\n")
    try:
        found = checks_of(healthy.doctor()["findings"])["machine-changed"]
    finally:
        history.unlink()
    assert "memory" in found["title"]
    assert found["evidence"][0]["value"] == "measured 2026-10-01"
