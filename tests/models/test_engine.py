"""Made models and the memory arithmetic against the real engine, in a child process."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.shared import shared_dir
from velollm.backends.buffers import parse_buffers
from velollm.knobs import KnobValue
from velollm.models.families import get_family
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import DeviceMemory, estimate_memory
from velollm.models.synthetic import SHAPE_1B, TINY, Recipe, draw_blueprint, ensure_model, write_model
from velollm.units import MIB

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine is not installed"
)

DEFAULTS = {"context": 512, "slots": 1, "ubatch": 512, "kv_type_k": "f16", "kv_type_v": "f16", "flash": True}
TEXTS = ["Hello world, this is a test.", "日本語 ünïcödé \n\t 🦙 <s>", "def f(x):\n    return x\n", ""]
# The log gives MiB with two digits.
ROUNDING_BYTES = MIB // 100


def run_engine(model: Path, texts: list[str] | None = None, **changes: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """What the engine answered, and the bytes of its buffers by kind."""
    settings = json.dumps({**DEFAULTS, **changes, "texts": texts or []})
    child = Path(__file__).with_name("engine_child.py")
    done = subprocess.run(
        [sys.executable, str(child), str(model), settings], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), parse_buffers(done.stderr)


def test_a_made_model_tokenizes_any_text_and_writes_varied_text(tiny: Path) -> None:
    answer, buffers = run_engine(tiny, TEXTS)
    assert answer["back"] == TEXTS
    assert answer["counts"][0] < len(TEXTS[0])
    first, second = answer["answers"]
    assert len(first) == len(second) == 24
    assert first != second
    assert len(set(first)) > 12
    assert len(set(second)) > 12
    assert len(answer["logprobs"]) == 2 * 24 * 5
    assert all(math.isfinite(value) and value <= 0 for value in answer["logprobs"])
    # No token stands above all others: even the likeliest is far from certain.
    assert max(answer["logprobs"]) < math.log(0.5)
    device = estimated(tiny, {"context_tokens": 512, "load_mode": "none"})
    assert device.weights_bytes == pytest.approx(buffers["weights"], abs=ROUNDING_BYTES)
    assert device.repack_bytes == pytest.approx(buffers["repack"], abs=ROUNDING_BYTES)


def estimated(path: Path, knobs: dict[str, KnobValue]) -> DeviceMemory:
    found = estimate_memory(model_facts(read_gguf(path), path.stem), knobs)
    assert found is not None
    (device,) = found.devices
    return device


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "padding and slots": {"context": 300, "slots": 3},
    "long, quantized": {"context": 8192, "kv_type_k": "q8_0", "kv_type_v": "q4_0"},
    "small batch": {"context": 2048, "ubatch": 64},
    "batch over context": {"context": 512, "ubatch": 1024},
    "no flash attention": {"context": 2048, "slots": 2, "flash": False},
}
OTHER_SHAPES = {
    "narrow": replace(TINY, name="narrow", feed_forward_length=128),
    "many kv heads": replace(TINY, name="many", feed_forward_length=128, kv_heads=8),
}


def compare(path: Path, **changes: Any) -> None:
    """Hold the arithmetic against the sizes in the engine's log."""
    settings = {**DEFAULTS, **changes}
    _, buffers = run_engine(path, **changes)
    device = estimated(
        path,
        {
            "context_tokens": settings["context"],
            "slots": settings["slots"],
            "ubatch": settings["ubatch"],
            "kv_type_k": settings["kv_type_k"],
            "kv_type_v": settings["kv_type_v"],
            "flash_attention": "auto" if settings["flash"] else "off",
            "load_mode": "none",
        },
    )
    for term in ("kv", "output"):
        assert getattr(device, f"{term}_bytes") == pytest.approx(buffers[term], abs=ROUNDING_BYTES), term
    # The embedded engine is of a later build than the one whose graphs are counted: it keeps one or two more embeddings
    # for each token of a step, and its positions.
    more = buffers["compute"] - device.compute_bytes
    width = model_facts(read_gguf(path), "").embedding_length or 0
    each = 4 * min(settings["ubatch"], settings["context"] * settings["slots"])
    assert (width + 4) * each - ROUNDING_BYTES <= more <= (2 * width + 4) * each + ROUNDING_BYTES


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_near_the_engines_own_log(name: str, tiny: Path) -> None:
    compare(tiny, **CASES[name])


@pytest.mark.parametrize("name", OTHER_SHAPES)
@pytest.mark.parametrize("flash", [True, False])
def test_estimates_are_near_for_narrow_shapes(name: str, flash: bool, tmp_path: Path) -> None:
    compare(ensure_model(OTHER_SHAPES[name], tmp_path), context=1024, flash=flash)


def test_estimates_are_near_for_a_real_model() -> None:
    compare(shared_dir("models") / "tiny-python-5m-f16.gguf", context=2048, slots=2)


def test_estimates_are_near_for_the_shape_that_is_measured_with(tmp_path: Path) -> None:
    # Width, heads and feed-forward of the 1B shape; two layers and a small vocabulary keep the file small.
    compare(ensure_model(replace(SHAPE_1B, name="thin", layers=2, vocab=1024), tmp_path), context=4096)


@pytest.mark.parametrize("slots", [1, 2])
def test_guesses_of_mtp_layers_keep_what_the_estimate_says(slots: int, tmp_path: Path) -> None:
    path = tmp_path / "mtp.gguf"
    write_model(path, draw_blueprint(get_family("qwen35:tiny").shape, Recipe("q4_0")))
    for kind in ("none", "draft-mtp"):
        changes: dict[str, Any] = {} if kind == "none" else {"speculation": kind}
        _, buffers = run_engine(path, threads=1, context=1024, slots=slots, **changes)
        knobs: dict[str, KnobValue] = {"context_tokens": 1024, "slots": slots, "speculation": kind, "load_mode": "none"}
        device = estimated(path, knobs)
        for term in ("weights", "repack", "kv", "recurrent", "output"):
            assert getattr(device, f"{term}_bytes") == pytest.approx(buffers[term], abs=2 * ROUNDING_BYTES), term
        # Of a later build than the one whose graphs are counted (test_guesses_real.py holds those against it).
        assert buffers.get("draft", 0) == pytest.approx(device.draft_bytes, rel=0.3)
        assert (device.draft_bytes > 0) is (kind == "draft-mtp")
