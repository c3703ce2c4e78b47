"""Hold projectors of pictures, which are loaded beside a model, against an engine.

    .venv/bin/python benchmarks/memory/projectors.py LLAMA_SERVER -o RESULT.json

The projectors are empty files of their own shapes. Each case starts the server once with model and projector, reads the
sizes of all buffers from its log, and ends it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import measure
from matrix import TERMS, arguments, save
from shapes import SHAPES, Shape, write_shape

from velollm.estimate.find import with_projector
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_memory
from velollm.models.writer import NewTensor, WriteValue, data_bytes, render_header


@dataclass(frozen=True)
class Projector:
    """A projector to be made for a main model of shapes.py."""

    name: str
    kind: str
    main: str
    layers: int
    width: int
    heads: int
    inner: int
    patch: int
    image: int
    positions: int = 0
    deepstack: tuple[int, ...] = ()
    window_pattern: int = 0


PROJECTORS = (
    Projector("siglip-small", "gemma3", "gemma3-1b", 3, 384, 6, 1536, 14, 224, positions=16),
    Projector("siglip-so400m-cut", "gemma3", "gemma3-4b-cut", 3, 1152, 16, 4304, 14, 896, positions=64),
    Projector("siglip-wide", "gemma3", "gemma3-12b-cut", 2, 1536, 12, 4096, 16, 512, positions=32),
    Projector("qwen2vl-cut", "qwen2vl_merger", "qwen3-0.6b", 3, 1280, 16, 5120, 14, 560),
    Projector("qwen2vl-small", "qwen2vl_merger", "qwen3-1.7b", 2, 640, 10, 2560, 14, 560),
    Projector("qwen2.5vl-cut", "qwen2.5vl_merger", "qwen3-0.6b", 4, 1280, 16, 3420, 14, 560, window_pattern=2),
    Projector("qwen3vl-cut", "qwen3vl_merger", "qwen3-0.6b", 4, 1024, 16, 4096, 16, 768, 48, (1, 2)),
    Projector("qwen3.5-cut", "qwen3vl_merger", "qwen3-1.7b", 3, 1152, 16, 4304, 16, 768, 48),
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"context_tokens": 2048, "slots": 1},
    {"context_tokens": 4096, "slots": 2, "ubatch": 128},
)


def write_projector(shape: Projector, out: int, path: Path) -> Path:
    """The file of that projector, without data."""
    tensors = tuple(NewTensor(*tensor) for tensor in _tensors(shape, out))
    header = render_header(_metadata(shape, out), tensors)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + data_bytes(tensors))
    return path


def _metadata(shape: Projector, out: int) -> Iterator[tuple[str, WriteValue]]:
    yield "general.architecture", "clip"
    yield "clip.has_vision_encoder", True
    yield "clip.projector_type", shape.kind
    yield "clip.use_gelu", shape.window_pattern == 0
    yield "clip.use_silu", shape.window_pattern > 0
    yield "clip.vision.block_count", shape.layers
    yield "clip.vision.embedding_length", shape.width
    yield "clip.vision.feed_forward_length", shape.inner
    yield "clip.vision.attention.head_count", shape.heads
    yield "clip.vision.attention.layer_norm_epsilon", 1e-6
    yield "clip.vision.projection_dim", out
    yield "clip.vision.image_size", shape.image
    yield "clip.vision.patch_size", shape.patch
    yield "clip.vision.image_mean", [0.5, 0.5, 0.5]
    yield "clip.vision.image_std", [0.5, 0.5, 0.5]
    if shape.window_pattern:
        yield "clip.vision.n_wa_pattern", shape.window_pattern


def _tensors(shape: Projector, out: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    width, inner, four = shape.width, shape.inner, 4 * shape.width
    for name in ("weight",) if shape.kind == "gemma3" else ("weight", "weight.1"):
        yield f"v.patch_embd.{name}", (shape.patch, shape.patch, 3, width), "f16"
    if shape.kind in ("gemma3", "qwen3vl_merger"):
        yield "v.patch_embd.bias", (width,), "f32"
        yield "v.position_embd.weight", (width, shape.positions**2), "f32"
    yield from _norm("v.post_ln", width, bias=not shape.window_pattern)
    for layer in range(shape.layers):
        for name in ("ln1", "ln2"):
            yield from _norm(f"v.blk.{layer}.{name}", width, bias=not shape.window_pattern)
        if shape.kind == "qwen3vl_merger":
            yield from _linear(f"v.blk.{layer}.attn_qkv", width, 3 * width)
        else:
            for name in ("attn_q", "attn_k", "attn_v"):
                yield from _linear(f"v.blk.{layer}.{name}", width, width)
        yield from _linear(f"v.blk.{layer}.attn_out", width, width)
        for name in ("ffn_up", "ffn_gate") if shape.window_pattern else ("ffn_up",):
            yield from _linear(f"v.blk.{layer}.{name}", width, inner)
        yield from _linear(f"v.blk.{layer}.ffn_down", inner, width)
    for layer in shape.deepstack:
        yield from _norm(f"v.deepstack.{layer}.norm", four, bias=True)
        yield from _linear(f"v.deepstack.{layer}.fc1", four, four)
        yield from _linear(f"v.deepstack.{layer}.fc2", four, out)
    if shape.kind == "gemma3":
        yield "mm.input_projection.weight", (out, width), "f16"
        yield "mm.soft_emb_norm.weight", (width,), "f32"
        return
    yield from _linear("mm.0", four, four)
    yield from _linear("mm.2", four, out)


def _norm(name: str, width: int, *, bias: bool) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.weight", (width,), "f32"
    if bias:
        yield f"{name}.bias", (width,), "f32"


def _linear(name: str, width: int, rows: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.weight", (width, rows), "f16"
    yield f"{name}.bias", (rows,), "f32"


def _main(main: Shape, projector: Projector) -> Shape:
    """The main model; one of another architecture where the projector hands it results of its layers too."""
    if not projector.deepstack:
        return main
    more = (
        ("qwen3vl.n_deepstack_layers", len(projector.deepstack)),
        ("qwen3vl.rope.dimension_sections", (24, 20, 20, 0)),
    )
    return replace(main, architecture="qwen3vl", more=more)


def cases(server: Path, directory: Path, only: str) -> Iterator[dict[str, Any]]:
    """All projectors with all settings."""
    shapes = {shape.name: shape for shape in SHAPES}
    for shape in (shape for shape in PROJECTORS if shape.name.startswith(only)):
        main = write_shape(_main(shapes[shape.main], shape), directory / "main.gguf")
        out = shapes[shape.main].width
        path = write_projector(shape, out, directory / "projector.gguf")
        model = with_projector(model_facts(read_gguf(main), shape.name), path)
        for knobs in SETTINGS:
            engine = measure(server, main, [*arguments(knobs), "--mmproj", str(path), "--warmup"])
            estimate = estimate_memory(model, knobs)
            assert estimate is not None
            (device,) = estimate.devices
            ours = {term: getattr(device, f"{term}_bytes") for term in (*TERMS, "picture")}
            # The engine's log does not tell the weights of a projector.
            ours["weights"] -= model.projector_bytes or 0
            errors = {term: round((size - engine.get(term, 0)) / 1024) for term, size in ours.items()}
            print(shape.name, knobs, errors, engine.get("picture", 0) >> 20, "MiB of pictures", flush=True)
            yield {
                "model": shape.name,
                "architecture": shape.kind,
                "knobs": knobs,
                "engine": engine,
                "arithmetic": ours,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="projectors whose name begins so")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        save(
            wanted.server, wanted.output, list(cases(wanted.server, Path(directory), wanted.only)), (*TERMS, "picture")
        )


if __name__ == "__main__":
    main()
