"""Which number formats of the KV cache the engine can load."""

from __future__ import annotations

from velollm.facts import ModelFacts
from velollm.knobs import QUANTIZED_KV_TYPES, Basis, Knobs, KnobValue
from velollm.rules.base import word

KV_TYPE_KNOBS = ("kv_type_k", "kv_type_v")
# Every quantized format of the KV cache stores blocks of 32 values (ggml, block sizes of q4_0 to q8_0, iq4_nl).
_BLOCK_VALUES = 32


def choose_kv_types(
    model: ModelFacts | None, flash_attention: str, pins: Knobs
) -> tuple[dict[str, KnobValue], str, Basis]:
    """f16, or what was pinned as far as the engine loads it; the reason, and what it rests on."""
    wanted = {name: word(pins, name, "f16") for name in KV_TYPE_KNOBS}
    if not any(name in pins for name in wanted):
        return {**wanted}, "f16 changes no answer; a smaller format is yours to choose with --set", "table"
    if (refused := kv_refusal(model, wanted, flash_attention)) is None:
        return {**wanted}, "you asked for it with --set", "user"
    names, why = refused
    asked = ", ".join(f"{name}={wanted[name]}" for name in names)
    return {**wanted, **dict.fromkeys(names, "f16")}, f"f16 instead of {asked}: {why}", "table"


def kv_refusal(model: ModelFacts | None, wanted: dict[str, str], flash_attention: str) -> tuple[list[str], str] | None:
    """Knobs that must go back to f16, and why; None where the engine can load these.

    llama.cpp b10488, src/llama-context.cpp, checks at the creation of a context.
    """
    k, v = wanted["kv_type_k"], wanted["kv_type_v"]
    if model is not None and model.mla is not None and k != v:
        return [name for name in wanted if wanted[name] != "f16"], "latent attention needs one format for both"
    odd = _odd_heads(model, wanted)
    if v in QUANTIZED_KV_TYPES and flash_attention == "off":
        names = [*dict.fromkeys([*odd, "kv_type_v"])]
        return names, "a quantized V needs flash attention, which is off"
    if odd:
        return odd, f"the head size is not a multiple of {_BLOCK_VALUES}"
    return None


def _odd_heads(model: ModelFacts | None, wanted: dict[str, str]) -> list[str]:
    if model is None:
        return []
    sizes = {
        "kv_type_k": (model.key_length, model.key_length_swa),
        "kv_type_v": (model.value_length, model.value_length_swa),
    }
    return [
        name
        for name, kind in wanted.items()
        if kind in QUANTIZED_KV_TYPES and any(size and size % _BLOCK_VALUES for size in sizes[name])
    ]
