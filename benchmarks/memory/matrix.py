"""Hold the memory arithmetic against an engine: shapes × contexts × slots × KV formats.

    .venv/bin/python benchmarks/memory/matrix.py LLAMA_SERVER -o RESULT.json [--held-out] [MODEL.gguf ...]

Each case starts the server once, reads the sizes of its buffers from its log, and ends it. Without models, the shapes
of shapes.py are used. With --held-out, the settings are others than those of the matrix, none of them looked at while
the arithmetic was written. The result holds every case, the engine's bytes and ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from engine import measure
from shapes import SHAPES, write_shape

from velollm.facts import ModelFacts
from velollm.knobs import Knobs
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import estimate_memory
from velollm.units import MIB

CONTEXTS, SLOTS, KV_TYPES = (2048, 8192, 32768), (1, 4), ("f16", "q8_0", "q4_0")
TERMS = ("weights", "repack", "kv", "recurrent", "compute", "output")
# Beyond the matrix: no flash attention, other batches, one cache for all slots, weights read instead of mapped.
OTHERS: tuple[dict[str, Any], ...] = (
    {"context_tokens": 2048, "slots": 3, "ubatch": 100, "flash_attention": "off", "load_mode": "none"},
    {"context_tokens": 8192, "slots": 4, "ubatch": 256, "kv_unified": "on", "kv_type_k": "q8_0", "kv_type_v": "q4_0"},
    {"context_tokens": 4000, "slots": 2, "batch": 1024, "ubatch": 1024, "load_mode": "none"},
    {"context_tokens": 4096, "slots": 2, "ubatch": 512, "speculation": "ngram-mod"},
)
# Held out: uneven contexts, many slots, other formats, small and large steps.
HELD_OUT: tuple[dict[str, Any], ...] = (
    {"context_tokens": 1536, "slots": 1},
    {"context_tokens": 3072, "slots": 2, "kv_type_k": "q8_0", "kv_type_v": "q8_0", "ubatch": 128, "load_mode": "none"},
    {"context_tokens": 12288, "slots": 1, "kv_type_k": "q4_0", "kv_type_v": "q4_0", "load_mode": "none"},
    {"context_tokens": 6000, "slots": 3, "kv_type_k": "q8_0", "kv_type_v": "f16", "batch": 256, "ubatch": 64},
    {"context_tokens": 16384, "slots": 4, "ubatch": 1024},
    {"context_tokens": 40960, "slots": 1, "kv_type_k": "q5_1", "kv_type_v": "q5_0"},
    {"context_tokens": 4096, "slots": 6, "kv_unified": "on", "load_mode": "none"},
    {"context_tokens": 2048, "slots": 8, "flash_attention": "off"},
    {"context_tokens": 5000, "slots": 2, "kv_type_k": "q8_0", "kv_type_v": "q8_0", "speculation": "ngram-mod"},
    {"context_tokens": 1000, "slots": 1, "ubatch": 2048, "load_mode": "none"},
)


def settings(model: ModelFacts, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """The knobs of each case; a compressed cache (MLA) has one format."""
    for context, slots, kind in () if held_out else product(CONTEXTS, SLOTS, KV_TYPES):
        yield {"context_tokens": context, "slots": slots, "kv_type_k": kind, "kv_type_v": kind}
    for other in HELD_OUT if held_out else OTHERS:
        one_format = model.mla is not None and "kv_type_k" in other
        yield {**other, "kv_type_v": other["kv_type_k"]} if one_format else other


def arguments(knobs: Knobs) -> list[str]:
    """The server's arguments for these knobs."""
    context, slots = knobs["context_tokens"], knobs["slots"]
    assert isinstance(context, int)
    assert isinstance(slots, int)
    argv = ["--ctx-size", str(context * slots), "--parallel", str(slots)]
    flags = {
        "kv_type_k": "--cache-type-k",
        "kv_type_v": "--cache-type-v",
        "batch": "--batch-size",
        "ubatch": "--ubatch-size",
        "flash_attention": "--flash-attn",
        "load_mode": "--load-mode",
        "speculation": "--spec-type",
    }
    for knob, flag in flags.items():
        if knob in knobs:
            argv += [flag, str(knobs[knob])]
    return [*argv, "--kv-unified"] if knobs.get("kv_unified") == "on" else argv


def ours(model: ModelFacts, knobs: Knobs) -> dict[str, int]:
    """The arithmetic's bytes by term."""
    estimate = estimate_memory(model, knobs)
    assert estimate is not None, f"{model.name}: no estimate"
    (device,) = estimate.devices
    return {term: getattr(device, f"{term}_bytes") for term in TERMS}


def run(server: Path, path: Path, name: str, *, fitted: bool, held_out: bool) -> Iterator[dict[str, Any]]:
    """All cases of one model."""
    model = model_facts(read_gguf(path), name)
    for knobs in settings(model, held_out=held_out):
        engine = measure(server, path, arguments(knobs))
        case = {
            "model": name,
            "architecture": model.architecture,
            "fitted": fitted,
            "knobs": knobs,
            "engine": engine,
            "arithmetic": ours(model, knobs),
        }
        print(name, knobs, f"{total_error(case) / MIB:+.2f} MiB", flush=True)
        yield case


def total_error(case: dict[str, Any]) -> int:
    """Bytes by which the arithmetic's total is too large."""
    return sum(case["arithmetic"].values()) - sum(case["engine"].values())


def worst(cases: list[dict[str, Any]], terms: tuple[str, ...] = TERMS) -> dict[str, Any]:
    """The largest error of each term and of the total, by architecture, in bytes and as a share."""
    found: dict[str, Any] = {}
    for case in cases:
        row = found.setdefault(case["architecture"], dict.fromkeys((*terms, "total"), 0) | {"share": 0.0, "cases": 0})
        for term in terms:
            row[term] = max(row[term], abs(case["arithmetic"][term] - case["engine"].get(term, 0)))
        error = abs(total_error(case))
        row["total"] = max(row["total"], error)
        row["share"] = max(row["share"], round(error / sum(case["engine"].values()), 6))
        row["cases"] += 1
    return found


def table(rows: dict[str, Any], terms: tuple[str, ...] = TERMS) -> str:
    """Worst errors as a Markdown table, in KiB."""
    heads = ["architecture", "cases", *terms, "total", "total, share"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        sizes = " | ".join(f"{row[term] / 1024:.0f}" for term in (*terms, "total"))
        lines.append(f"| {name} | {row['cases']} | {sizes} | {100 * row['share']:.3f}% |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="shapes whose name begins so")
    parser.add_argument("--held-out", action="store_true", help="settings that are not in the matrix")
    wanted = parser.parse_intermixed_args()
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        for path in wanted.models:
            cases += run(wanted.server, path, path.stem, fitted=False, held_out=wanted.held_out)
        for shape in () if wanted.models else SHAPES:
            if shape.name.startswith(wanted.only):
                path = write_shape(shape, Path(directory) / "model.gguf")
                cases += run(wanted.server, path, shape.name, fitted=shape.fitted, held_out=wanted.held_out)
    save(wanted.server, wanted.output, cases)


def save(server: Path, output: Path, cases: list[dict[str, Any]], terms: tuple[str, ...] = TERMS) -> None:
    """Write the result, and print its table."""
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    said = (version.stderr + version.stdout).splitlines()
    engine = next((line for line in said if line.startswith("version")), "unknown")
    result = {"schema_version": 1, "engine": engine, "worst_bytes": worst(cases, terms), "cases": cases}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_lines(result), encoding="utf-8")
    print(table(result["worst_bytes"], terms))


def _lines(result: dict[str, Any]) -> str:
    """JSON with one case a line."""
    cases = ",\n    ".join(json.dumps(case) for case in result["cases"])
    head = json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=2)
    return head.removesuffix("\n}") + f',\n  "cases": [\n    {cases}\n  ]\n}}\n'


if __name__ == "__main__":
    main()
