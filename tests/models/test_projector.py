"""Projectors of pictures: their shape from a header, and what an engine computed in (benchmarks/memory)."""

from __future__ import annotations

import importlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.files import header_of
from tests.models.test_memory import model
from velollm.facts import ProjectorFacts
from velollm.models.gguf import read_gguf
from velollm.models.memory import estimate_memory
from velollm.models.memory_compute import picture_bytes
from velollm.models.projector import projector_facts
from velollm.models.writer import NewTensor
from velollm.units import MIB

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORDED = json.loads((BENCHMARKS / "results" / "memory" / "projectors-b10488-cpu.json").read_text(encoding="utf-8"))
ROUNDING_BYTES = MIB // 100
SMALL = ProjectorFacts(
    kind="gemma3", layers=2, width=64, heads=4, feed_forward=256, patch=14, image=112, merge=4, out=128, positions=8
)


@lru_cache(maxsize=1)
def made() -> Any:
    sys.path.insert(0, str(BENCHMARKS / "memory"))
    try:
        return importlib.import_module("projectors")
    finally:
        sys.path.remove(str(BENCHMARKS / "memory"))


@pytest.mark.parametrize("name", sorted({case["model"] for case in RECORDED["cases"]}))
def test_what_pictures_take_as_the_engine_has_it(name: str, tmp_path: Path) -> None:
    shape = next(shape for shape in made().PROJECTORS if shape.name == name)
    main = next(main for main in made().SHAPES if main.name == shape.main)
    found = projector_facts(read_gguf(made().write_projector(shape, main.width, tmp_path / "projector.gguf")))
    assert found is not None
    cases = [case for case in RECORDED["cases"] if case["model"] == name]
    assert cases
    for case in cases:
        engine = case["engine"]["picture"]
        assert abs(picture_bytes(found, on_gpu=False) - engine) <= max(ROUNDING_BYTES, 0.001 * engine)


def test_they_stand_on_the_first_gpu_beside_their_weights() -> None:
    knobs = {"context_tokens": 256}
    plain, seeing = (
        estimate_memory(shape, knobs) for shape in (model(), model(projector_bytes=10 * MIB, projector=SMALL))
    )
    assert plain is not None
    assert seeing is not None
    (before,), (after,) = plain.devices, seeing.devices
    assert after.picture_bytes == picture_bytes(SMALL, on_gpu=False) > 0
    assert after.weights_bytes - before.weights_bytes == 10 * MIB
    assert after.total_bytes - before.total_bytes == 10 * MIB + after.picture_bytes


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"clip.projector_type": "mobilenet"},
        {"clip.projector_type": "gemma3"},
        {"clip.projector_type": "gemma3", "clip.vision.block_count": 2, "clip.vision.embedding_length": 0},
    ],
)
def test_a_projector_that_is_not_known_is_unknown(tmp_path: Path, metadata: dict[str, Any]) -> None:
    tensors = [NewTensor("v.patch_embd.weight", (14, 14, 3, 64), "f16")]
    assert projector_facts(header_of(tmp_path, metadata, tensors)) is None


@given(
    st.sampled_from(["gemma3", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"]),
    st.integers(1, 3),
    st.sampled_from([32, 64]),
)
def test_more_width_never_takes_less(kind: str, layers: int, width: int) -> None:
    window = 2 if kind == "qwen2.5vl_merger" else 0
    shape = {"kind": kind, "layers": layers, "window_pattern": window, "merge": 4 if kind == "gemma3" else 2}
    few, many = (
        picture_bytes(SMALL.model_copy(update={**shape, "width": size, "feed_forward": 4 * size}), on_gpu=False)
        for size in (width, 2 * width)
    )
    assert 0 < few <= many
