"""Knobs that were not given, as the engine would choose them."""

from __future__ import annotations

from collections.abc import Mapping

from velollm.backends.ollama_defaults import default_batch, ollama_default_knobs
from velollm.facts import Facts, ModelFacts
from velollm.knobs import Knobs, KnobValue

# llama-server, b10488: common/common.h and common/arg.cpp. The context is the model's own.
_LLAMA: Mapping[str, KnobValue] = {
    "slots": 1,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "flash_attention": "auto",
    "batch": 2048,
    "ubatch": 512,
    "load_mode": "mmap",
}
_NAMES = ("context_tokens", *_LLAMA)


def default_knobs(backend: str, machine: Facts, model: ModelFacts, given: Mapping[str, KnobValue]) -> Knobs:
    """All knobs that memory depends on: as given, else llama.cpp's own, or Ollama's.

    Ollama's batch follows from the context of all slots together (server/sched.go:797-895), so it is worked out last.
    The embedded engine plays Ollama's part.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if backend == "llamacpp":
        return {"context_tokens": model.context_train, **_LLAMA, **wanted}
    own = ollama_default_knobs(machine.model_copy(update={"model": model}))
    knobs = {**{name: own.get(name) for name in _NAMES}, **wanted}
    context, slots = knobs.get("context_tokens"), knobs.get("slots") or 1
    if isinstance(context, int) and isinstance(slots, int):
        batch = default_batch(context * slots)
        for name in ("batch", "ubatch"):
            if name not in wanted:
                knobs[name] = wanted.get("batch", batch)
    return knobs
