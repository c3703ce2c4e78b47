"""A model that is on the GPU by the server's word, and on the processor by its speed."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, RestartMend, evidence
from velollm.doctor.mend import restart
from velollm.facts import EngineFacts, Facts, GpuFacts, ServerFacts
from velollm.units import GIB, render_bytes

_NAME = "gpu-slow"
_WHY = "answers come at the speed of main memory, though the GPU's memory is several times faster"
# The slowest memory of any discrete card of that size: NVIDIA GeForce GTX 1650 and AMD Radeon RX 6400 128 GB/s; from
# 23 GiB on NVIDIA L4 300 GB/s (vendors' data sheets).
_SLOWEST_BYTES_PER_S = 128e9
_SLOWEST_LARGE_BYTES_PER_S, _LARGE_BYTES = 300e9, 23 * GIB
_LEAST_VRAM_BYTES = 4 * GIB
# Decode reads all weights for each token; llama.cpp reaches half of a card's bandwidth and more with a GiB of weights.
_SHARE = 0.25
_LEAST_WEIGHTS_BYTES = GIB
_FEW_ANSWERS = 2
_WHOLE_SHARE = 0.9


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that `/api/ps` counts on the GPU while its best answer was slower than any GPU's memory.

    For each token all weights are read once (of a mixture of experts fewer, so those are never found). Speed
    times bytes is the bandwidth that was reached; below a quarter of what the slowest card of that
    size has, the work was done elsewhere. Answers of 16 tokens and more count, the fastest of them.
    """
    server = facts.server
    engine = server.activity.engine if server and server.activity else None
    cards = [gpu for gpu in facts.gpus or () if gpu.integrated is False and (gpu.vram_bytes or 0) >= _LEAST_VRAM_BYTES]
    if server is None or engine is None or not cards or server.remote:
        return
    rate = engine.best_decode_tokens_per_s
    if rate is None or engine.timed_answers < _FEW_ANSWERS or not _is_on_gpu(server, engine):
        return
    reached = rate * engine.weights_bytes
    slowest = min(_bandwidth(gpu) for gpu in cards)
    if reached >= _SHARE * slowest:
        return
    name = server.loaded[0].name if server.loaded else engine.model or "the model"
    title = f"{name} is on the GPU by the server's count, but answers at the speed of the processor"
    seen = (
        evidence(facts, "server.activity", f"{rate:.1f} tokens/s at best, in {engine.timed_answers} answers"),
        evidence(
            facts,
            "server.activity",
            f"{render_bytes(engine.weights_bytes)} of weights a token: {reached / 1e9:.0f} GB/s reached",
        ),
        evidence(facts, "gpus", f"{cards[0].name or 'GPU'}: {slowest / 1e9:.0f} GB/s at the very least"),
    )
    yield Finding(_NAME, "warning", title, seen, restart(server), _WHY, RestartMend())


def _is_on_gpu(server: ServerFacts, engine: EngineFacts) -> bool:
    if engine.weights_bytes < _LEAST_WEIGHTS_BYTES or engine.gpu_weights_bytes < _WHOLE_SHARE * engine.weights_bytes:
        return False
    counted = [model for model in server.loaded or () if model.size_bytes and model.gpu_bytes is not None]
    return all((model.gpu_bytes or 0) >= _WHOLE_SHARE * (model.size_bytes or 0) for model in counted)


def _bandwidth(gpu: GpuFacts) -> float:
    return _SLOWEST_LARGE_BYTES_PER_S if (gpu.vram_bytes or 0) >= _LARGE_BYTES else _SLOWEST_BYTES_PER_S


check = Check(_NAME, "On the GPU by count, not by speed", "warning", True, run)
