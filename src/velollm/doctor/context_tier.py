"""A default context that is too wide for the GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.environment import judged_environment
from velollm.facts import Facts, ServerFacts
from velollm.units import render_bytes

_NAME = "context-tier"
_WHY = "the KV cache of the wide context pushes layers of the model out of the GPU, and each token waits for them"
_SMALL, _MIDDLE = 4096, 32768


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that is only partly on the GPU because the context was chosen by the GPU's size.

    Where nobody asks for a context, Ollama takes 32,768 tokens from 23 GiB of GPU memory on and 262,144
    from 47 GiB on, for every model, times the slots. It does not look whether the model still fits
    beside it; the engine then moves layers to the processor.
    """
    server = facts.server
    tier = server.activity.default_context_tokens if server and server.activity else None
    if server is None or tier is None or tier <= _SMALL or server.remote:
        return
    placed, total, kv = server.gpu_layers, server.total_layers, server.kv_cache_bytes
    env = judged_environment(facts)
    if placed is None or total is None or placed >= total or kv is None or env is None:
        return
    if server.context_tokens != tier or env.get("OLLAMA_CONTEXT_LENGTH"):
        return
    wanted = _MIDDLE if tier > _MIDDLE else _SMALL
    severity: Severity = "warning"
    slots = f" for each of {server.slots} slots" if server.slots and server.slots > 1 else ""
    title = f"the default context of {tier:,} tokens{slots} takes {render_bytes(kv)}, and pushes the model off the GPU"
    seen = (
        evidence(facts, "server.activity", f"vram-based default context: {tier:,}"),
        evidence(facts, "server.kv_cache_bytes", f"KV cache {render_bytes(kv)}"),
        evidence(facts, "server.gpu_layers", f"{placed} of {total} layers on the GPU"),
    )
    name = "OLLAMA_CONTEXT_LENGTH"
    mend = env.mend(**{name: wanted}) if _room(server, tier, wanted) else None
    yield Finding(_NAME, severity, title, seen, env.set(name, wanted), _WHY, mend)


def _room(server: ServerFacts, tier: int, wanted: int) -> bool:
    """Would the smaller KV cache make room for a layer at least?"""
    kv, total = server.kv_cache_bytes or 0, server.total_layers or 1
    return kv * (1 - wanted / tier) > kv / total


check = Check(_NAME, "Default context too wide for the GPU", "warning", True, run)
