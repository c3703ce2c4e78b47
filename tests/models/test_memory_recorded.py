"""The arithmetic against what an engine printed while it loaded models of the same shapes (benchmarks/memory)."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_memory
from velollm.units import MIB

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORDED = json.loads((BENCHMARKS / "results" / "memory" / "llama-b10488-cpu.json").read_text(encoding="utf-8"))
TERMS = ("weights", "repack", "kv", "recurrent", "compute", "output")
# The log gives MiB with two digits, and a term has up to three lines.
ROUNDING_BYTES = 3 * MIB // 100
# One or two of each architecture, none of which was looked at while the arithmetic was written.
HELD_OUT = (
    *("llama-narrow-inner", "qwen3-1.7b", "gemma3-12b-cut", "qwen3moe-many", "deepseek2-small", "deepseek2-heads"),
    *("mamba2-groups", "granitehybrid-350m", "granitehybrid-tiny-moe"),
)


@lru_cache(maxsize=1)
def shapes() -> Any:
    spec = importlib.util.spec_from_file_location("memory_shapes", BENCHMARKS / "memory" / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def facts_of(name: str, directory: Path) -> ModelFacts:
    shape = next(shape for shape in shapes().SHAPES if shape.name == name)
    assert not shape.fitted
    return model_facts(read_gguf(shapes().write_shape(shape, directory / "model.gguf")), name)


def test_the_recording_is_of_the_whole_matrix() -> None:
    found = {(case["model"], case["knobs"]["context_tokens"], case["knobs"]["slots"]) for case in RECORDED["cases"]}
    for shape in shapes().SHAPES:
        for context in (2048, 8192, 32768):
            assert {(shape.name, context, 1), (shape.name, context, 4)} <= found


@pytest.mark.parametrize("name", HELD_OUT)
def test_every_term_as_the_engine_has_it(name: str, tmp_path: Path) -> None:
    facts = facts_of(name, tmp_path)
    cases = [case for case in RECORDED["cases"] if case["model"] == name]
    assert len(cases) >= 22
    for case in cases:
        found = estimate_memory(facts, case["knobs"])
        assert found is not None
        (device,) = found.devices
        for term in TERMS:
            engine, ours = case["engine"].get(term, 0), getattr(device, f"{term}_bytes")
            assert abs(ours - engine) <= ROUNDING_BYTES, (term, case["knobs"])
        total = sum(case["engine"].values())
        assert abs(found.total_bytes - total) <= 0.001 * total
