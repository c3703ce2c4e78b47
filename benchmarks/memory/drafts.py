"""Hold a draft model, which is loaded beside another, against an engine.

    .venv/bin/python benchmarks/memory/drafts.py LLAMA_SERVER -o RESULT.json

Each case starts the server once with both, reads the sizes of all buffers from its log, and ends it. The result holds
every case, the engine's bytes and ours: the main model's terms, and all of the draft's as one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from engine import measure
from matrix import TERMS, arguments, save
from shapes import SHAPES, write_shape

from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_memory

# Main model and draft, of one architecture and of two.
PAIRS = (
    ("qwen3-1.7b", "qwen3-0.6b"),
    ("qwen3-4b-cut", "qwen3-1.7b"),
    ("qwen3moe-30b-cut", "qwen3-0.6b"),
    ("gemma3-4b-cut", "gemma3-1b"),
    ("llama-1b", "llama-narrow-inner"),
    ("deepseek2-small", "llama-1b"),
)
DRAFT_SETTINGS: tuple[dict[str, Any], ...] = (
    *(
        {"context_tokens": context, "slots": slots, "kv_type_k": kind, "kv_type_v": kind}
        for context, slots, kind in product((2048, 16384), (1, 4), ("f16", "q8_0"))
    ),
    {"context_tokens": 4000, "slots": 3, "ubatch": 100, "flash_attention": "off", "load_mode": "none"},
    {"context_tokens": 4096, "slots": 2, "kv_unified": "on", "ubatch": 1024},
)


def drafts(server: Path, directory: Path) -> Iterator[dict[str, Any]]:
    """All cases of main models with drafts."""
    shapes = {shape.name: shape for shape in SHAPES}
    for names in PAIRS:
        paths = [write_shape(shapes[name], directory / f"{name}.gguf") for name in dict.fromkeys(names)]
        main, draft = (model_facts(read_gguf(path), path.stem) for path in paths)
        for knobs in DRAFT_SETTINGS:
            beside = ["--spec-draft-model", str(paths[1]), "--spec-type", "draft-simple"]
            engine = measure(server, paths[0], [*arguments(knobs), *beside])
            estimate = estimate_memory(main, knobs, draft=draft)
            assert estimate is not None
            (device,) = estimate.devices
            ours = {term: getattr(device, f"{term}_bytes") for term in TERMS} | {"draft": device.draft_bytes}
            yield _case(" + ".join(names), main.architecture, knobs, engine, ours)
        for path in paths:
            path.unlink()


def _case(
    name: str, architecture: str | None, knobs: dict[str, Any], engine: dict[str, int], ours: dict[str, int]
) -> dict[str, Any]:
    case = {"model": name, "architecture": architecture, "knobs": knobs, "engine": engine, "arithmetic": ours}
    errors = {term: ours[term] - engine.get(term, 0) for term in ours if ours[term] != engine.get(term, 0)}
    print(name, knobs, {term: round(error / 1024) for term, error in errors.items()}, flush=True)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    wanted = parser.parse_args()
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        cases += drafts(wanted.server, Path(directory))
    save(wanted.server, wanted.output, cases, (*TERMS, "draft"))


if __name__ == "__main__":
    main()
