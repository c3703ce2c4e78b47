"""Knobs as `LLAMA_ARG_*` environment variables, the names that llama-server and Ollama's child read.

Names: llama.cpp b10488, common/arg.cpp (`set_env`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from velollm.knobs import DRAFT_KINDS, NGRAM_KINDS, PRIORITIES, Knobs, KnobValue

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
    "repack": "LLAMA_ARG_REPACK",
    "speculation": "LLAMA_ARG_SPEC_TYPE",
    "draft_model": "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "cache_reuse": "LLAMA_ARG_CACHE_REUSE",
    "gpu_layers": "LLAMA_ARG_N_GPU_LAYERS",
    "cpu_moe_layers": "LLAMA_ARG_N_CPU_MOE",
    "cpu_ffn_layers": "LLAMA_ARG_OVERRIDE_TENSOR",
    "kv_unified": "LLAMA_ARG_KV_UNIFIED",
    "kv_offload": "LLAMA_ARG_KV_OFFLOAD",
}
OPTION_KNOBS = ("priority", "batch_threads", "speculation_match", "polling")
"""Knobs that the engine has options for and no variables, so that only a command line or config.ini carries them."""
CONTEXT_ARG = "LLAMA_ARG_CTX_SIZE"
DRAFT_TOKENS_ARG = "LLAMA_ARG_SPEC_DRAFT_N_MAX"
OPENMP_WAIT = "OMP_WAIT_POLICY"
"""The variable of the OpenMP run-time, read when the engine starts (OpenMP 5.2, section 21.2.7)."""
NO_DEBUGGER: Mapping[str, str] = {"GGML_NO_BACKTRACE": "1"}
"""A crash then tells its reason and ends: else a debugger would bury it under its pages (ggml/src/ggml.c:157)."""
_KNOB_OF_ARG = {arg: knob for knob, arg in ARG_OF_KNOB.items()}
_NUMBERS = frozenset({"threads", "slots", "batch", "ubatch"})
# Here 0 is a number like others.
_COUNTS = frozenset({"gpu_layers", "cpu_moe_layers", "cache_reuse"})
_SWITCHES = frozenset({"kv_unified", "kv_offload", "repack"})
# The only override that is written or understood. No backslash, dollar or percent sign: each means something else in
# one of the places where settings live. The engine splits a value at commas and at its first equals sign, and searches
# names for the pattern (common/arg.cpp:253, src/llama-model-loader.cpp:1184).
_FFN_TENSORS = "[.]ffn_(gate|up|down)(_shexp)?[.](weight|bias)=CPU"
_FFN_OVERRIDE = re.compile(r"blk\[\.\]\((\d{1,4}(?:\|\d{1,4})*)\)" + re.escape(_FFN_TENSORS))
# The engine's own words for a truth value (common/arg.cpp:1332-1338).
_TRUE, _FALSE = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")


def total_context_tokens(knobs: Knobs) -> int | None:
    """llama-server's context size is for all slots together; None where the knob is not set."""
    context, slots = knobs.get("context_tokens"), knobs.get("slots") or 1
    if not isinstance(context, int) or not isinstance(slots, int):
        return None
    return context * slots


def length_options(kind: str) -> dict[str, str]:
    """Options with the lengths of guesses from earlier text, by knob; `ngram-cache` has none (arg.cpp:4164-4276)."""
    if kind == "ngram-mod":
        return {"speculation_tokens": "spec-ngram-mod-n-max", "speculation_match": "spec-ngram-mod-n-match"}
    if kind in NGRAM_KINDS and kind != "ngram-cache":
        return {"speculation_tokens": f"spec-{kind}-size-m", "speculation_match": f"spec-{kind}-size-n"}
    return {}


def speculation_options(knobs: Knobs) -> dict[str, int]:
    """Lengths of the kind that guesses, as long options of the engine without dashes (common/arg.cpp:4077-4276).

    `ngram-mod` proposes nothing shorter than its least length, 48 by itself (common/common.h:351-356), so that goes
    down with the longest.
    """
    kind, tokens = str(knobs.get("speculation")), knobs.get("speculation_tokens")
    found: dict[str, int] = {}
    if kind in DRAFT_KINDS and isinstance(tokens, int):
        found["spec-draft-n-max"] = tokens
    if kind == "ngram-mod" and isinstance(tokens, int):
        found["spec-ngram-mod-n-min"] = max(1, min(48, tokens * 3 // 4))
    for knob, option in length_options(kind).items():
        if isinstance(value := knobs.get(knob), int):
            found[option] = value
    return found


def polling_options(knobs: Knobs) -> dict[str, int]:
    """How long waiting threads stay awake, those of a draft too (common/arg.cpp:1572 and 3972, where 0 and 1 mean no
    and yes for a draft).
    """
    polling = knobs.get("polling")
    if not isinstance(polling, int):
        return {}
    draft = {"spec-draft-poll": min(polling, 1)} if knobs.get("speculation") in DRAFT_KINDS else {}
    return {"poll": polling, **draft}


def parse_speculation_options(options: Mapping[str, str], kind: str | None) -> dict[str, KnobValue]:
    """What such options mean for the ``kind`` that guesses."""
    found = {knob: options.get(option, "") for knob, option in length_options(kind or "").items()}
    return {knob: int(text) for knob, text in found.items() if text.isdecimal() and int(text) > 0}


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
        elif knob == "cpu_ffn_layers":
            if (layers := parse_ffn_override(text)) is not None:
                knobs[knob] = layers
        elif knob in _COUNTS:
            if text.isdecimal():
                knobs[knob] = int(text)
        elif knob not in _NUMBERS:
            knobs[knob] = text
        elif text.isdecimal() and int(text) > 0:
            knobs[knob] = int(text)
    tokens = environ.get(DRAFT_TOKENS_ARG, "")
    if tokens.isdecimal() and int(tokens) > 0 and knobs.get("speculation") in DRAFT_KINDS:
        knobs["speculation_tokens"] = int(tokens)
    total = environ.get(CONTEXT_ARG, "")
    if total.isdecimal() and int(total) > 0:
        slots = knobs.get("slots", 1)
        assert isinstance(slots, int)
        knobs["context_tokens"] = int(total) // slots
    return knobs


def parse_switch(text: str) -> str | None:
    """``on`` or ``off``; None where the engine would take the text for neither."""
    return "on" if text in _TRUE else "off" if text in _FALSE else None


def render_arg(knob: str, value: KnobValue) -> str:
    """A knob's value as its variable or flag has it."""
    return render_ffn_override(value) if knob == "cpu_ffn_layers" and isinstance(value, int) else str(value)


def render_ffn_override(layers: int) -> str:
    """The override that keeps the dense feed-forward part, shared experts included, of the first layers on the CPU.

    0 matches no layer, because a variable that is there but empty would end the engine.
    """
    numbers = "|".join(map(str, range(layers))) or "none"
    return f"blk[.]({numbers}){_FFN_TENSORS}"


def parse_ffn_override(text: str) -> int | None:
    """How many layers, from the first, that override is for; None where it is another one."""
    match = _FFN_OVERRIDE.fullmatch(text)
    if match is None:
        return 0 if text == render_ffn_override(0) else None
    layers = match.group(1).count("|") + 1
    return layers if text == render_ffn_override(layers) else None


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
        "cpu_ffn_layers": "--override-tensor",
    }
    argv: list[str] = []
    for knob, flag in flags.items():
        if (value := knobs.get(knob)) is not None:
            argv += [flag, render_arg(knob, value)]
    if knobs.get("batch_threads") is not None:
        argv += ["--threads-batch", str(knobs["batch_threads"])]
    for option, value in polling_options(knobs).items():
        argv += [f"--{option}", str(value)]
    if (level := knobs.get("priority")) in PRIORITIES[1:]:
        argv += ["--prio", str(PRIORITIES.index(str(level)))]
    if knobs.get("repack") == "off":
        argv.append("--no-repack")
    if knobs.get("cache_reuse"):
        argv += ["--cache-reuse", str(knobs["cache_reuse"])]
    # The opposite of each is what the engine does with a number of slots that is set; older ones have no flag for it.
    if knobs.get("kv_unified") == "on":
        argv.append("--kv-unified")
    if knobs.get("kv_offload") == "off":
        argv.append("--no-kv-offload")
    if knobs.get("speculation") not in (None, "none"):
        argv += ["--spec-type", str(knobs["speculation"])]
        if knobs.get("draft_model") is not None:
            argv += ["--spec-draft-model", str(knobs["draft_model"])]
        for option, value in speculation_options(knobs).items():
            argv += [f"--{option}", str(value)]
    if (total := total_context_tokens(knobs)) is not None:
        argv += ["--ctx-size", str(total)]
    return argv
