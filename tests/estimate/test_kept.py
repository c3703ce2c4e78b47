from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.test_buffers import LOG
from tests.models.test_memory import model
from velollm.backends.buffers import parse_buffers, parse_build
from velollm.backends.stamp import engine_stamp
from velollm.estimate.kept import Kept, find_kept, identity, keep_measured, keep_total, uncorrected, with_kept
from velollm.facts import ModelFacts
from velollm.models.memory import MemoryEstimate, corrected, estimate_memory
from velollm.units import MIB

SHAPE = model(file_bytes=2 * MIB)
CPU_LOG = "\n".join(line for line in LOG.splitlines() if "CUDA" not in line) + (
    "\nI sched_reserve:        CPU compute buffer size =    70.00 MiB\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(2 * MIB - 4))
    return file


def expected() -> MemoryEstimate:
    found = estimate_memory(SHAPE, {"context_tokens": 256})
    assert found is not None
    return found


def factors_of(data: Path, shape: ModelFacts, path: Path, build: str | None = None) -> Mapping[str, float]:
    found = find_kept(data, shape, path, build=build)
    return {} if found is None else found.factors


def test_a_load_corrects_later_estimates_of_the_same_model(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    factors = factors_of(tmp_path, SHAPE, path)
    ratio = parse_buffers(CPU_LOG)["compute"] / expected().devices[0].compute_bytes
    assert factors["compute"] == pytest.approx(ratio, abs=1e-6)
    better = corrected(expected(), factors).devices[0]
    assert better.compute_bytes == pytest.approx(70 * MIB, abs=MIB // 10)
    assert better.basis == "corrected"
    assert factors_of(tmp_path, SHAPE, path, parse_build(CPU_LOG)) == factors
    assert factors_of(tmp_path, SHAPE, path, "another build") == {}


def test_another_file_is_another_model(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    other = path.with_name("other.gguf")
    other.write_bytes(b"GGUX" + bytes(2 * MIB - 4))
    assert factors_of(tmp_path, SHAPE, other) == {}
    assert identity(SHAPE, Path("/blobs/sha256-abc")) == "sha256-abc"
    assert identity(SHAPE, None) is None
    assert identity(SHAPE, tmp_path / "absent.gguf") is None


def test_nothing_is_kept_of_a_log_that_tells_nothing(tmp_path: Path, path: Path) -> None:
    for log in ("", CPU_LOG.replace("build 10488", "built"), CPU_LOG.replace("compute buffer", "some buffer")):
        keep_measured(tmp_path, SHAPE, path, expected(), log)
        keep_measured(tmp_path, SHAPE, path, None, CPU_LOG)
        assert not (tmp_path / "memory.json").exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema_version": 2}', '{"schema_version": 1, "factors": {}}', "[" * 100_000]
    + [
        f'{{"schema_version": 2, "loads": {value}}}'
        for value in ("7", '{"a b": 1}', '{"a b": {"factors": {"kv": "x"}}}')
    ]
    + ['{"schema_version": 2, "loads": {"a b": {"factors": [1], "source": "log", "stamp": null}}}'],
)
def test_a_file_that_cannot_be_read_counts_as_empty_and_is_replaced(tmp_path: Path, path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text, encoding="utf-8")
    assert factors_of(tmp_path, SHAPE, path) == {}
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    assert factors_of(tmp_path, SHAPE, path)


def test_a_factor_that_cannot_be_is_left_out(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    document = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    (entry,) = document["loads"].values()
    entry["factors"]["compute"], entry["factors"]["kv"] = 1e9, 1.5
    (tmp_path / "memory.json").write_text(json.dumps(document), encoding="utf-8")
    factors = factors_of(tmp_path, SHAPE, path)
    assert "compute" not in factors
    assert factors["kv"] == 1.5


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    keep_measured(tmp_path / "data", SHAPE, path, expected(), CPU_LOG)
    assert factors_of(tmp_path / "data", SHAPE, path) == {}


def test_only_so_many_are_kept(tmp_path: Path, path: Path) -> None:
    entry = {"factors": {"kv": 1.0}, "source": "log", "stamp": None}
    entries = {f"model-{number} build": entry for number in range(1000)}
    (tmp_path / "memory.json").write_text(json.dumps({"schema_version": 2, "loads": entries}), encoding="utf-8")
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    kept = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["loads"]
    assert len(kept) == 1000
    assert "model-0 build" not in kept


@given(st.dictionaries(st.sampled_from(["kv", "compute", "weights", "output"]), st.floats(0.25, 4.0)))
def test_corrections_keep_sums_consistent(factors: dict[str, float]) -> None:
    found = corrected(expected(), factors)
    assert found.total_bytes == sum(device.total_bytes for device in found.devices)


def test_a_difference_within_the_rounding_of_the_log_is_none(tmp_path: Path, path: Path) -> None:
    found = expected().devices[0]
    lines = CPU_LOG.splitlines()
    lines.append(f"I sched_reserve:        CPU compute buffer size = {found.compute_bytes / MIB:.2f} MiB")
    keep_measured(tmp_path, SHAPE, path, expected(), "\n".join(lines))
    kept = find_kept(tmp_path, SHAPE, path)
    assert kept is not None
    assert "compute" not in kept.factors


def test_only_the_engine_that_told_it_corrects_an_estimate(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    server = programs / "llama-server"
    server.write_text("", encoding="utf-8")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    stamp = engine_stamp("llamacpp")
    assert stamp is not None
    assert engine_stamp("ollama") is None
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG, stamp)
    found = with_kept(tmp_path, SHAPE, path, "llamacpp")
    better = estimate_memory(found, {"context_tokens": 256})
    assert better is not None
    assert better.devices[0].basis == "corrected"
    assert better.devices[0].compute_bytes == pytest.approx(70 * MIB, abs=MIB // 10)
    assert estimate_memory(uncorrected(found), {"context_tokens": 256}) == expected()
    # No other engine, no other file, and not the same engine once it was replaced.
    assert with_kept(tmp_path, SHAPE, path, "ollama") == SHAPE
    assert with_kept(tmp_path, SHAPE, None, "llamacpp") == SHAPE
    server.write_text("another build", encoding="utf-8")
    assert with_kept(tmp_path, SHAPE, path, "llamacpp") == SHAPE


def test_a_total_without_a_log_names_its_source(tmp_path: Path, path: Path) -> None:
    keep_total(tmp_path, SHAPE, path, expected(), expected().total_bytes * 11 // 10, Kept({}, "/api/ps", "ollama:1"))
    kept = find_kept(tmp_path, SHAPE, path, build="/api/ps")
    assert kept is not None
    assert (kept.source, kept.stamp) == ("/api/ps", "ollama:1")
    assert kept.factors == {"total": pytest.approx(1.1, abs=1e-5)}
    assert corrected(expected(), kept.factors).total_bytes == pytest.approx(expected().total_bytes * 1.1, rel=1e-4)
    keep_total(tmp_path, SHAPE, path, expected(), 0, Kept({}, "/api/ps"))
    keep_total(tmp_path, SHAPE, path, None, MIB, Kept({}, "/api/ps"))
    assert len(json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["loads"]) == 1
