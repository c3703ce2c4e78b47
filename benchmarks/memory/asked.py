"""Hold `velollm estimate --basis engine` against what the engines print when they serve the same model.

    .venv/bin/python benchmarks/memory/asked.py -o RESULT.json

On every engine that is here: `llama-server` and `ollama` of PATH, and the embedded one. Each case asks for the
estimate, then starts a private server once more, lets it answer, and reads the sizes of its buffers from its log.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from shapes import SHAPES, write_shape

from velollm.backends.base import Backend, iter_backends
from velollm.backends.buffers import parse_buffers
from velollm.backends.llamacpp import free_port
from velollm.estimate import Question, estimate
from velollm.estimate.defaults import default_knobs
from velollm.facts import Facts
from velollm.models.gguf import model_facts, read_gguf

MODELS = ("llama-narrow-inner", "qwen3-0.6b", "gemma3-1b", "qwen3moe-small", "mamba2-370m", "granitehybrid-350m")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"context_tokens": 2048, "slots": 1, "batch": 512, "ubatch": 512},
    {"context_tokens": 4096, "slots": 2, "batch": 256, "ubatch": 256, "cpu_moe_layers": 1, "cpu_ffn_layers": 2},
)
DRAFTED = ("qwen3-0.6b", "qwen3-0.6b")


@contextmanager
def ollama(store: Path) -> Iterator[str]:
    """A server over an empty store, to put models into."""
    address = f"127.0.0.1:{free_port()}"
    own = {"HOME": str(store), "OLLAMA_HOST": address, "OLLAMA_MODELS": str(store / "models"), "OLLAMA_NO_CLOUD": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (store / "serve.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(["ollama", "serve"], env={**kept, **own}, stdout=log, stderr=log)
    try:
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(transport=transport, trust_env=False) as client:
            client.get(f"http://{address}/api/version").raise_for_status()
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def create(url: str, name: str, path: Path) -> None:
    """Put a file into the store under that name."""
    content = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
        client.post(f"/api/blobs/{digest}", content=content).raise_for_status()
        body = {"model": name, "files": {path.name: digest}, "stream": False}
        client.post("/api/create", json=body).raise_for_status()


def served(backend: Backend, name: str, path: Path, knobs: dict[str, Any], directory: Path) -> dict[str, int]:
    """Bytes by kind of a server that has answered."""
    facts = Facts(gpus=(), model=model_facts(read_gguf(path), name))
    log = directory / "served.log"
    with backend.trial(backend.find_model(name), knobs, facts, log=log) as server:
        server.complete("a b c", max_tokens=4, seed=1, deadline_s=60)
    found = parse_buffers(log.read_text(encoding="utf-8", errors="replace"))
    log.unlink()
    return found


def case(
    backend: Backend, name: str, path: Path, knobs: dict[str, Any], draft: Path | None, directory: Path
) -> dict[str, Any]:
    """One model with one setting on one engine."""
    question = Question(name, knobs, None if draft is None else str(draft), backend.name, basis="engine")
    asked = estimate(question, directory / "data").estimate
    facts = model_facts(read_gguf(path), name)
    all_knobs = dict(default_knobs(backend.name, Facts(gpus=()), facts, knobs))
    if draft is not None:
        all_knobs |= {"speculation": "draft-simple", "draft_model": str(draft)}
    engine = served(backend, name, path, {**all_knobs, "threads": 2}, directory)
    total = sum(engine.values())
    share = abs(asked.total_bytes - total) / total
    print(backend.name, path.stem, knobs, "with a draft" if draft else "", f"{100 * share:.3f}%", flush=True)
    return {
        "engine": backend.name,
        "model": path.stem,
        "draft": None if draft is None else draft.stem,
        "knobs": knobs,
        "served": engine,
        "asked_bytes": asked.total_bytes,
        "share": round(share, 6),
    }


def cases(backend: Backend, paths: dict[str, Path], names: dict[str, str], directory: Path) -> Iterator[dict[str, Any]]:
    for model, knobs in ((model, knobs) for model in MODELS for knobs in SETTINGS):
        yield case(backend, names[model], paths[model], knobs, None, directory)
    main, draft = DRAFTED
    yield case(backend, names[main], paths[main], SETTINGS[0], paths[draft], directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    wanted = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="velollm-") as name:
        directory = Path(name)
        paths = {
            shape.name: write_shape(shape, directory / f"{shape.name}.gguf") for shape in SHAPES if shape.name in MODELS
        }
        # No server of the user's is asked.
        os.environ |= {"OLLAMA_HOST": f"127.0.0.1:{free_port()}", "OLLAMA_MODELS": str(directory / "models")}
        for backend in iter_backends():
            if backend.name not in ("llamacpp", "embedded", "ollama") or backend.missing():
                continue
            names = {model: str(path) for model, path in paths.items()}
            if backend.name == "ollama":
                names = {model: model.replace(".", "-") for model in paths}
                with ollama(directory) as url:
                    for model, path in paths.items():
                        create(url, names[model], path)
            found += cases(backend, paths, names, directory)
    worst: dict[str, float] = {}
    for item in found:
        worst[item["engine"]] = max(worst.get(item["engine"], 0.0), item["share"])
    lines = ",\n    ".join(json.dumps(item) for item in found)
    head = json.dumps({"schema_version": 1, "worst_share": worst}, indent=2).removesuffix("\n}")
    wanted.output.write_text(f'{head},\n  "cases": [\n    {lines}\n  ]\n}}\n', encoding="utf-8")
    print(worst)


if __name__ == "__main__":
    main()
