"""Weights that are in main memory twice."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Mend, ParameterMend, evidence
from velollm.doctor.mend import model_of
from velollm.facts import Facts, ServerFacts
from velollm.units import MIB, render_bytes

_NAME = "double-mapped"
_WHY = "the weights take their room in main memory twice: once as the mapped file, once in the processor's own order"
_MUCH_BYTES = 256 * MIB


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model whose file is mapped into memory although its weights were put into another order.

    On a processor llama.cpp repacks many formats for its vector units. With `use_mmap` the mapped
    file stays in memory beside that copy (716 MiB became 1,230). Ollama leaves mmap out by
    itself there, so a client or the model asked for it.
    """
    server = facts.server
    engine = server.activity.engine if server and server.activity else None
    if server is None or engine is None or server.remote:
        return
    twice = min(engine.mapped_bytes, engine.repacked_bytes)
    if twice < _MUCH_BYTES:
        return
    title = f"{render_bytes(twice)} of weights are in main memory twice, because the model's file is mapped"
    seen = (
        evidence(facts, "server.activity", f"CPU_Mapped model buffer: {render_bytes(engine.mapped_bytes)}"),
        evidence(facts, "server.activity", f"CPU_REPACK model buffer: {render_bytes(engine.repacked_bytes)}"),
    )
    fix = f"take use_mmap out of the requests, and out of {engine.model or model_of(server)} (PARAMETER use_mmap)"
    yield Finding(_NAME, "warning", title, seen, fix, _WHY, _mend(server, engine.model))


def _mend(server: ServerFacts, name: str | None) -> Mend | None:
    """Only where the model itself asks for it."""
    model = next((model for model in server.models or () if model.name == name), None)
    asked = model is not None and ("use_mmap", "true") in model.parameters
    return ParameterMend(model.name, {"use_mmap": False}) if model is not None and asked else None


check = Check(_NAME, "Weights in memory twice", "warning", True, run)
