"""Number formats of the KV cache."""

from __future__ import annotations

from velollm.facts import Facts, ModelFacts
from velollm.knobs import QUANTIZED_KV_TYPES, Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, word

# Every quantized format of the KV cache stores blocks of 32 values (ggml, block sizes of q4_0 to q8_0, iq4_nl).
_BLOCK_VALUES = 32


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Keeps f16, as a smaller format can change answers; only `--set kv_type_k=… kv_type_v=…` chooses another.

    What the engine would refuse to load is put back to f16, and the reason says so: a quantized V
    while flash attention is off, a quantized format whose blocks of 32 do not divide the head size,
    and two different formats on a model with multi-head latent attention (llama.cpp,
    llama-context.cpp, checks at context creation).
    """
    wanted = {name: word(wish.pins, name, "f16") for name in ("kv_type_k", "kv_type_v")}
    if not any(name in wish.pins for name in wanted):
        return Advice(wanted, "f16 changes no answer; a smaller format is yours to choose with --set", "table")
    if (refused := _refusal(facts.model, wanted, word(knobs, "flash_attention", "auto"))) is None:
        return Advice(wanted, "you asked for it with --set", "user")
    names, why = refused
    asked = ", ".join(f"{name}={wanted[name]}" for name in names)
    return Advice({**wanted, **dict.fromkeys(names, "f16")}, f"f16 instead of {asked}: {why}", "table")


def _refusal(model: ModelFacts | None, wanted: dict[str, str], flash_attention: str) -> tuple[list[str], str] | None:
    """Knobs that must go back to f16, and why; None where the engine can load these."""
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


rule = Rule(
    "kv-type",
    ("kv_type_k", "kv_type_v"),
    decide,
    needs=("flash_attention",),
    title="KV cache in f16 unless you say otherwise",
)
