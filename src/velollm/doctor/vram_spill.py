"""GPU memory that Windows keeps in main memory."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.doctor.mend import model_of
from velollm.facts import Facts
from velollm.units import MIB, render_bytes

_NAME = "vram-spill"
_WHY = "each token waits for weights that come over the bus, at a tenth of the card's speed"
_NOTHING_BYTES = 256 * MIB  # Windows keeps that much there for any program with a window.


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that did not fit the GPU, and that Windows put into main memory without an error.

    NVIDIA's driver for Windows lends main memory to a card that is full. It shows in the system's counter of
    shared GPU memory, or in the engine's log: what it put on the GPU is more than was free there.
    """
    if facts.os != "windows" and not facts.wsl:
        return
    server = facts.server
    fix = f"velollm optimize {model_of(server)} --profile low-memory" if server else "use a smaller model or context"
    fix += "  # or NVIDIA Control Panel: CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback"
    for place, gpu in enumerate(facts.gpus or ()):
        if gpu.spilled_bytes is not None and gpu.spilled_bytes >= _NOTHING_BYTES:
            title = f"Windows keeps {render_bytes(gpu.spilled_bytes)} of GPU memory in main memory"
            seen = (evidence(facts, f"gpus.{place}.spilled_bytes", f"{render_bytes(gpu.spilled_bytes)} shared"),)
            yield Finding(_NAME, "warning", title, seen, fix, _WHY)
            return
    engine = server.activity.engine if server and server.activity else None
    if engine is None or engine.gpu_free_bytes is None:
        return
    over = engine.gpu_used_bytes - engine.gpu_free_bytes
    if over < _NOTHING_BYTES:
        return
    title = f"the engine put {render_bytes(over)} more on the GPU than was free: Windows keeps the rest in main memory"
    put = evidence(facts, "server.activity", f"{render_bytes(engine.gpu_used_bytes)} put on the GPU")
    free = evidence(facts, "server.activity", f"{render_bytes(engine.gpu_free_bytes)} free there before")
    yield Finding(_NAME, "warning", title, (put, free), fix, _WHY)


check = Check(_NAME, "GPU memory that spilled into main memory", "warning", True, run)
