"""A model that is only partly on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.mend import model_of
from velollm.facts import Facts, LoadedModelFacts
from velollm.units import render_bytes

_NAME = "gpu-offload"
_WHY = "each token waits for the part of the model that is on the processor"
# What a server counts of a model that is on the GPU whole (embeddings stay in main memory).
_WHOLE_SHARE = 0.90
_ASKED = ("-ngl", "--gpu-layers", "--n-gpu-layers")


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model of which only a part is on the GPU: each token then waits for the processor's part.

    By the layers that the engine says it placed, else by the bytes that the server counts; those
    are looked at only where a GPU is known to be there, because a buffer of the processor can be
    counted as GPU memory. Where the number of layers was asked for, it is a note.
    """
    server = facts.server
    if server is None or not facts.gpus or server.remote:
        return
    placed, total = server.gpu_layers, server.total_layers
    if placed is not None and total is not None:
        if 0 < placed < total:
            title = f"only {placed} of {total} layers of {model_of(server)} are on the GPU"
            seen = (evidence(facts, "server.gpu_layers", f"{placed} of {total} layers"),)
            yield Finding(_NAME, _severity(server.loaded or ()), title, seen, _fix(facts), _WHY)
        return
    for model in server.loaded or ():
        if not model.size_bytes or not model.gpu_bytes or model.gpu_bytes >= _WHOLE_SHARE * model.size_bytes:
            continue
        share = f"{render_bytes(model.gpu_bytes)} of {render_bytes(model.size_bytes)}"
        seen = (evidence(facts, "server.loaded", share),)
        title = f"only {share} of {model.name} are on the GPU"
        yield Finding(_NAME, _severity((model,)), title, seen, _fix(facts, model), _WHY)


def _severity(models: tuple[LoadedModelFacts, ...]) -> Severity:
    asked = any(flag in (model.argv or ()) for model in models for flag in _ASKED)
    return "note" if asked else "warning"


def _fix(facts: Facts, model: LoadedModelFacts | None = None) -> str:
    assert facts.server is not None
    return f"velollm optimize {model.name if model else model_of(facts.server)}  # or a smaller quantization of it"


check = Check(_NAME, "Model only partly on the GPU", "warning", True, run)
