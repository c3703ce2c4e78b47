"""GPU memory that other programs hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.facts import Facts, GpuFacts, GpuProcess, ServerFacts
from velollm.units import GIB, render_bytes

_NAME = "vram-held"
_WHY = "what others hold the model cannot have: layers of it go to the processor, and each token waits for them"
_MUCH_BYTES, _MUCH_SHARE = GIB, 0.1
_ENGINES = re.compile(r"ollama|llama-server|llama_server|velollm", re.IGNORECASE)


def run(facts: Facts) -> Iterator[Finding]:
    """Finds programs that hold much of a GPU's memory beside the engine.

    Much is a GiB and a tenth of the card. Where a model is only partly on the GPU it is a warning, else a
    note. Windows does not tell what a program holds, so there nothing is found.
    """
    for place, gpu in enumerate(facts.gpus or ()):
        others = [process for process in gpu.processes or () if _is_other(process, facts.server)]
        held = sum(process.vram_bytes or 0 for process in others)
        if held < _MUCH_BYTES or gpu.vram_bytes is None or held < _MUCH_SHARE * gpu.vram_bytes:
            continue
        yield _finding(facts, place, gpu, sorted(others, key=lambda p: -(p.vram_bytes or 0)), held)


def _finding(facts: Facts, place: int, gpu: GpuFacts, others: list[GpuProcess], held: int) -> Finding:
    severity: Severity = "warning" if facts.server is not None and _is_partly(facts.server) else "note"
    title = f"other programs hold {render_bytes(held)} of {render_bytes(gpu.vram_bytes)} on {gpu.name or 'the GPU'}"
    seen = tuple(
        evidence(facts, f"gpus.{place}.processes", f"{p.name or p.pid}: {render_bytes(p.vram_bytes)}")
        for p in others[:3]
    )
    return Finding(_NAME, severity, title, seen, f"end {others[0].name or others[0].pid}, or move it elsewhere", _WHY)


def _is_other(process: GpuProcess, server: ServerFacts | None) -> bool:
    if process.vram_bytes is None or (server is not None and process.pid == server.pid):
        return False
    return not _ENGINES.search(process.name or "")


def _is_partly(server: ServerFacts) -> bool:
    placed, total = server.gpu_layers, server.total_layers
    return placed is not None and total is not None and placed < total


check = Check(_NAME, "GPU memory that others hold", "warning", False, run)
