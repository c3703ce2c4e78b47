"""Knobs as `LLAMA_ARG_*` environment variables, the names that llama-server and Ollama's child read.

Names: llama.cpp b10488, common/arg.cpp (`set_env`).
"""

from __future__ import annotations

from collections.abc import Mapping

from velollm.knobs import Knobs, KnobValue

# The total context is not here: it is context_tokens times slots.
ARG_OF_KNOB: Mapping[str, str] = {
    "threads": "LLAMA_ARG_THREADS",
    "slots": "LLAMA_ARG_N_PARALLEL",
    "kv_type_k": "LLAMA_ARG_CACHE_TYPE_K",
    "kv_type_v": "LLAMA_ARG_CACHE_TYPE_V",
    "flash_attention": "LLAMA_ARG_FLASH_ATTN",
    "batch": "LLAMA_ARG_BATCH",
    "ubatch": "LLAMA_ARG_UBATCH",
    "load_mode": "LLAMA_ARG_LOAD_MODE",
    "speculation": "LLAMA_ARG_SPEC_TYPE",
    "gpu_layers": "LLAMA_ARG_N_GPU_LAYERS",
    "cpu_moe_layers": "LLAMA_ARG_N_CPU_MOE",
    "kv_unified": "LLAMA_ARG_KV_UNIFIED",
    "kv_offload": "LLAMA_ARG_KV_OFFLOAD",
}
CONTEXT_ARG = "LLAMA_ARG_CTX_SIZE"
_KNOB_OF_ARG = {arg: knob for knob, arg in ARG_OF_KNOB.items()}
_NUMBERS = frozenset({"threads", "slots", "batch", "ubatch"})
# Here 0 is a number like others.
_COUNTS = frozenset({"gpu_layers", "cpu_moe_layers"})
_SWITCHES = frozenset({"kv_unified", "kv_offload"})
# The engine's own words for a truth value (common/arg.cpp:1332-1338).
_TRUE, _FALSE = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")


def total_context_tokens(knobs: Knobs) -> int | None:
    """llama-server's context size is for all slots together; None where the knob is not set."""
    context, slots = knobs.get("context_tokens"), knobs.get("slots") or 1
    if not isinstance(context, int) or not isinstance(slots, int):
        return None
    return context * slots


def parse_llama_args(environ: Mapping[str, str]) -> dict[str, KnobValue]:
    """Knobs that `LLAMA_ARG_*` variables set; what is not understood is left out."""
    knobs: dict[str, KnobValue] = {}
    for name, text in environ.items():
        knob = _KNOB_OF_ARG.get(name)
        if knob is None:
            continue
        if knob in _SWITCHES:
            if (value := parse_switch(text)) is not None:
                knobs[knob] = value
        elif knob in _COUNTS:
            if text.isdecimal():
                knobs[knob] = int(text)
        elif knob not in _NUMBERS:
            knobs[knob] = text
        elif text.isdecimal() and int(text) > 0:
            knobs[knob] = int(text)
    total = environ.get(CONTEXT_ARG, "")
    if total.isdecimal() and int(total) > 0:
        slots = knobs.get("slots", 1)
        assert isinstance(slots, int)
        knobs["context_tokens"] = int(total) // slots
    return knobs


def parse_switch(text: str) -> str | None:
    """``on`` or ``off``; None where the engine would take the text for neither."""
    return "on" if text in _TRUE else "off" if text in _FALSE else None


def render_flags(knobs: Knobs) -> list[str]:
    """Command-line flags of `llama-server` for these knobs; unset ones are left to the engine."""
    flags = {
        "threads": "--threads",
        "slots": "--parallel",
        "kv_type_k": "--cache-type-k",
        "kv_type_v": "--cache-type-v",
        "flash_attention": "--flash-attn",
        "batch": "--batch-size",
        "ubatch": "--ubatch-size",
        "load_mode": "--load-mode",
        "gpu_layers": "--n-gpu-layers",
        "cpu_moe_layers": "--n-cpu-moe",
    }
    argv: list[str] = []
    for knob, flag in flags.items():
        if (value := knobs.get(knob)) is not None:
            argv += [flag, str(value)]
    # The opposite of each is what the engine does with a number of slots that is set; older ones have no flag for it.
    if knobs.get("kv_unified") == "on":
        argv.append("--kv-unified")
    if knobs.get("kv_offload") == "off":
        argv.append("--no-kv-offload")
    if knobs.get("speculation") not in (None, "none"):
        argv += ["--spec-type", str(knobs["speculation"])]
    if (total := total_context_tokens(knobs)) is not None:
        argv += ["--ctx-size", str(total)]
    return argv
