"""The embedded engine's own process: llama.cpp inside the xllamacpp wheel, serving on loopback.

Run as ``python -m velollm.backends.embedded_child``, with one JSON line on standard input:
``{"model": path, "knobs": {…}, "port": 0}``. It prints ``velollm-ready URL`` once it can answer, and ends when
standard input closes, so that it never outlives the process that started it. It leaves through
``os._exit``, because taking the engine down in-process has been seen to hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
from typing import Any

from velollm.backends.child import WRAPPER_ERROR
from velollm.backends.llamaargs import render_ffn_override, speculation_options

READY = "velollm-ready "


def make_params(xllamacpp: Any, model: str, knobs: dict[str, Any], port: int) -> Any:
    """The engine's parameters for these knobs; a knob that is absent or None is left to the engine."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = knobs.get("slots") or 1
    params.n_ctx = (knobs.get("context_tokens") or 0) * params.n_parallel
    params.kv_unified = knobs.get("kv_unified") == "on"
    params.no_kv_offload = knobs.get("kv_offload") == "off"
    # From here on the engine says what it allocates (common/log.h of llama.cpp, LOG_LEVEL_TRACE).
    params.verbosity = 4
    params.ctx_shift = True
    params.endpoint_metrics = True
    params.endpoint_slots = True
    for name in ("batch", "ubatch"):
        if knobs.get(name):
            setattr(params, f"n_{name}", knobs[name])
    if knobs.get("threads"):
        params.cpuparams.n_threads = knobs["threads"]
        params.cpuparams_batch.n_threads = knobs["threads"]
    if knobs.get("batch_threads"):
        params.cpuparams_batch.n_threads = knobs["batch_threads"]
    if knobs.get("gpu_layers") is not None:
        params.n_gpu_layers = knobs["gpu_layers"]
    if overrides := _overrides(knobs):
        params.tensor_buft_overrides = ",".join(overrides)
    for name in ("k", "v"):
        if kind := knobs.get(f"kv_type_{name}"):
            setattr(params, f"cache_type_{name}", xllamacpp.ggml_type[f"GGML_TYPE_{kind.upper()}"])
    _set_modes(xllamacpp, params, knobs)
    return params


def _overrides(knobs: dict[str, Any]) -> list[str]:
    # As `--n-cpu-moe` has it: common/common.h of llama.cpp, llm_ffn_exps_block_regex.
    experts = range(knobs.get("cpu_moe_layers") or 0)
    found = [rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU" for layer in experts]
    if layers := knobs.get("cpu_ffn_layers"):
        found.append(render_ffn_override(layers))
    return found


def _set_modes(xllamacpp: Any, params: Any, knobs: dict[str, Any]) -> None:
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}.get(knobs.get("flash_attention") or "")
    if flash:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
    if mode := knobs.get("load_mode"):
        params.load_mode = xllamacpp.llama_load_mode[f"LLAMA_LOAD_MODE_{mode.upper()}"]
    if knobs.get("repack") == "off":
        params.no_extra_bufts = True  # as `--no-repack` has it: common/arg.cpp:2413-2418 of llama.cpp b10488
    if knobs.get("cache_reuse"):
        params.n_cache_reuse = knobs["cache_reuse"]
    if (kind := knobs.get("speculation")) and kind != "none":
        name = kind.upper().replace("-", "_")
        params.speculative.types = [xllamacpp.common_speculative_type[f"COMMON_SPECULATIVE_TYPE_{name}"]]
        if knobs.get("draft_model"):
            params.speculative.draft.mparams.path = knobs["draft_model"]
        _set_lengths(params.speculative, knobs)


def _set_lengths(speculative: Any, knobs: dict[str, Any]) -> None:
    """The options of the engine, where its parameters have them: ``spec-KIND-n-max`` is ``KIND.n_max``."""
    for option, value in speculation_options(knobs).items():
        kind, field = re.fullmatch(r"spec-(draft|ngram-.+)-((?:n|size)-\w+)", option).groups()  # type: ignore[union-attr]
        setattr(getattr(speculative, kind.replace("-", "_")), field.replace("-", "_"), value)


def _flush_log() -> None:
    """Let the engine write its last words: its log has a thread of its own, whose queue would end with the process.

    llama.cpp b10488, common/log.h:55 and 92; the two functions by their names in the wheel, where they have these.
    """
    with contextlib.suppress(KeyError, OSError, AttributeError):
        library = ctypes.CDLL(str(sys.modules["xllamacpp.xllamacpp"].__file__))
        find, flush = library._Z15common_log_mainv, library._Z16common_log_flushP10common_log
        find.restype, flush.restype, flush.argtypes = ctypes.c_void_p, None, [ctypes.c_void_p]
        flush(find())


def main() -> None:
    """Serve until standard input closes."""
    wanted = json.loads(sys.stdin.readline())
    try:
        import xllamacpp

        params = make_params(xllamacpp, wanted["model"], wanted["knobs"], wanted["port"])
        server = xllamacpp.Server(params)
    except Exception as error:
        _flush_log()
        print(f"{WRAPPER_ERROR}{type(error).__name__}: {error}", flush=True)  # noqa: T201
        os._exit(1)
    print(f"{READY}{server.listening_address}", flush=True)  # noqa: T201
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
