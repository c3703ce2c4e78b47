from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.test_buffers import LOG
from tests.models.test_memory import model
from velollm.backends.buffers import parse_buffers, parse_build
from velollm.estimate.kept import corrected, identity, keep_measured, kept_factors
from velollm.models.memory import MemoryEstimate, estimate_memory
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


def test_a_load_corrects_later_estimates_of_the_same_model(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    factors = kept_factors(tmp_path, SHAPE, path)
    ratio = parse_buffers(CPU_LOG)["compute"] / expected().devices[0].compute_bytes
    assert factors["compute"] == pytest.approx(ratio, abs=1e-6)
    better = corrected(expected(), factors).devices[0]
    assert better.compute_bytes == pytest.approx(70 * MIB, abs=MIB // 10)
    assert better.basis == "measured"
    assert kept_factors(tmp_path, SHAPE, path, parse_build(CPU_LOG)) == factors
    assert kept_factors(tmp_path, SHAPE, path, "another build") == {}


def test_another_file_is_another_model(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    other = path.with_name("other.gguf")
    other.write_bytes(b"GGUX" + bytes(2 * MIB - 4))
    assert kept_factors(tmp_path, SHAPE, other) == {}
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
    ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": 2, "factors": {}}', "[" * 100_000]
    + [f'{{"schema_version": 1, "factors": {value}}}' for value in ("7", '{"a b": 1}', '{"a b": {"kv": "x"}}')],
)
def test_a_file_that_cannot_be_read_counts_as_empty_and_is_replaced(tmp_path: Path, path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text, encoding="utf-8")
    assert kept_factors(tmp_path, SHAPE, path) == {}
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    assert kept_factors(tmp_path, SHAPE, path)


def test_a_factor_that_cannot_be_is_left_out(tmp_path: Path, path: Path) -> None:
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    document = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    (entry,) = document["factors"].values()
    entry["compute"], entry["kv"] = 1e9, 1.5
    (tmp_path / "memory.json").write_text(json.dumps(document), encoding="utf-8")
    factors = kept_factors(tmp_path, SHAPE, path)
    assert "compute" not in factors
    assert factors["kv"] == 1.5


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    keep_measured(tmp_path / "data", SHAPE, path, expected(), CPU_LOG)
    assert kept_factors(tmp_path / "data", SHAPE, path) == {}


def test_only_so_many_are_kept(tmp_path: Path, path: Path) -> None:
    entries = {f"model-{number} build": {"kv": 1.0} for number in range(1000)}
    (tmp_path / "memory.json").write_text(json.dumps({"schema_version": 1, "factors": entries}), encoding="utf-8")
    keep_measured(tmp_path, SHAPE, path, expected(), CPU_LOG)
    kept = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["factors"]
    assert len(kept) == 1000
    assert "model-0 build" not in kept


@given(st.dictionaries(st.sampled_from(["kv", "compute", "weights", "output"]), st.floats(0.25, 4.0)))
def test_corrections_keep_sums_consistent(factors: dict[str, float]) -> None:
    found = corrected(expected(), factors)
    assert found.total_bytes == sum(device.total_bytes for device in found.devices)
