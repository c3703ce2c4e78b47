"""What a flight knows of its model before it plans."""

from __future__ import annotations

import json
from pathlib import Path

from velollm.autopilot.chart import find_model_facts
from velollm.backends.base import ModelRef
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_store import MODEL_LAYER, PROJECTOR_LAYER
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.memory import estimate_total_bytes
from velollm.models.synthetic import TINY, ensure_model


def test_what_turns_pictures_into_embeddings_counts_in_a_plan(tmp_path: Path) -> None:
    file = ensure_model(TINY, tmp_path)
    blobs = tmp_path / "models" / "blobs"
    blobs.mkdir(parents=True)
    layers = []
    for number, kind in enumerate((MODEL_LAYER, PROJECTOR_LAYER)):
        (blobs / f"sha256-{number:064x}").hardlink_to(file)
        layers.append({"mediaType": kind, "digest": f"sha256:{number:064x}", "size": 1})
    manifest = tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "sees" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers}), encoding="utf-8")

    plain = model_facts(read_gguf(file), "sees")
    facts = find_model_facts(ModelRef("sees", blobs / f"sha256-{0:064x}"), OllamaBackend("http://127.0.0.1:9"))
    assert facts is not None
    assert facts.projector_bytes == plain.tensor_bytes
    knobs = {"context_tokens": 1024}
    assert (estimate_total_bytes(facts, knobs) or 0) - (estimate_total_bytes(plain, knobs) or 0) == plain.tensor_bytes
