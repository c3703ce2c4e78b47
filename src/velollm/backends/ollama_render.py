"""Knobs in Ollama's own settings, by the version of the server.

Which setting reaches what, and what shadows it: Ollama v0.33.0-rc2 envconfig/config.go, llm/llama_server.go:370-650;
llama.cpp b10488 common/arg.cpp. Only names of this file are ever written, because one wrong LLAMA_ARG_* value makes
every load fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from velollm.backends.base import Setting
from velollm.backends.llamaargs import (
    ARG_OF_KNOB,
    DRAFT_TOKENS_ARG,
    OPENMP_WAIT,
    OPTION_KNOBS,
    length_options,
    parse_llama_args,
    parse_speculation_options,
    polling_options,
    render_arg,
    speculation_options,
    total_context_tokens,
)
from velollm.backends.ollama_defaults import default_batch
from velollm.knobs import DRAFT_KINDS, PRIORITIES, Knobs, KnobValue

LLAMA_SERVER_ERA = (0, 30, 0)
CONFIG_ERA = (0, 32, 15)
"""From here on the engine reads a config.ini, for options that have no variable."""
PRIORITY_OPTION = "prio"
BATCH_THREADS_OPTION = "threads-batch"
POLLING_OPTION = "poll"
HEADS_PARAMETER = "draft_num_predict"
"""Without it Ollama leaves the MTP layers of a model idle (server/routes.go:135-156)."""
_HEADS_TOKENS = 4  # what Ollama takes for a model with a draft of its own
# LLAMA_ARG_SPEC_TYPE takes the n-gram kinds by these names since the pin of 0.30.0.
_FLASH = {"on": "1", "off": "0"}
PARAMETER_OF_KNOB = {
    "context_tokens": "num_ctx",
    "batch": "num_batch",
    "threads": "num_thread",
    "gpu_layers": "num_gpu",
}
# What no parameter reaches; the child llama-server has these names since the pin of 0.30.0.
_ENGINE_KNOBS = (
    *("cpu_moe_layers", "cpu_ffn_layers", "kv_unified", "kv_offload"),
    *("repack", "draft_model", "cache_reuse"),
)
TUNING = frozenset(
    f"OLLAMA_{name}"
    for name in (
        *("NUM_PARALLEL", "CONTEXT_LENGTH", "KEEP_ALIVE"),
        *("MAX_LOADED_MODELS", "FLASH_ATTENTION", "KV_CACHE_TYPE"),
    )
)
ENVIRONMENT_NAMES = (
    TUNING
    | {f"LLAMA_ARG_{name}" for name in ("SPEC_TYPE", "CACHE_TYPE_K", "CACHE_TYPE_V", "BATCH", "UBATCH", "THREADS")}
    | {ARG_OF_KNOB[knob] for knob in _ENGINE_KNOBS}
    | {DRAFT_TOKENS_ARG, OPENMP_WAIT}
)
"""Variables that knobs are rendered to or read from; where an environment cannot be listed, these are asked for."""


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The three numbers of a version; None for a source build (0.0.0) and for no version at all."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    found = (int(match.group(1)), int(match.group(2)), int(match.group(3))) if match else None
    return None if found == (0, 0, 0) else found


def supported_knobs(version: tuple[int, int, int] | None) -> frozenset[str]:
    """Knobs that a server of this version has; an unknown version counts as a current one."""
    always = {"context_tokens", "slots", "kv_type_k", "kv_type_v", "flash_attention", "batch", "threads"}
    always |= {"keep_alive_s", "max_loaded_models", "load_mode", "gpu_layers"}
    if version is not None and version < LLAMA_SERVER_ERA:
        return frozenset(always)
    always |= {"ubatch", "speculation", "speculation_tokens", "openmp_wait", *_ENGINE_KNOBS}
    return frozenset(always if version is not None and version < CONFIG_ERA else always.union(OPTION_KNOBS))


def render_settings(knobs: Knobs, defaults: Knobs, version: tuple[int, int, int] | None) -> tuple[Setting, ...]:
    """Settings for every knob that is not at Ollama's default."""
    supported = supported_knobs(version)
    knobs = {k: v for k, v in knobs.items() if k in supported}
    changed = {k: v for k, v in knobs.items() if v is not None and v != defaults.get(k)}
    settings = [*_environment(changed, knobs), *_parameters(changed, knobs), *_config(changed)]
    if version is not None and version < LLAMA_SERVER_ERA:
        settings = [setting for setting in settings if not setting.key.startswith("LLAMA_ARG_")]
    if version is not None and version < CONFIG_ERA:
        settings = [setting for setting in settings if setting.target != "config"]
    return tuple(sorted(settings, key=lambda setting: (setting.target, setting.key)))


def _environment(changed: Mapping[str, KnobValue], knobs: Knobs) -> list[Setting]:
    found: list[Setting] = []

    def add(key: str, value: object, knob: str) -> None:
        found.append(Setting("environment", key, str(value), knob))

    if "slots" in changed:
        add("OLLAMA_NUM_PARALLEL", changed["slots"], "slots")
    if "keep_alive_s" in changed:
        seconds = changed["keep_alive_s"]
        add("OLLAMA_KEEP_ALIVE", -1 if isinstance(seconds, int) and seconds < 0 else f"{seconds}s", "keep_alive_s")
    if "max_loaded_models" in changed:
        add("OLLAMA_MAX_LOADED_MODELS", changed["max_loaded_models"], "max_loaded_models")
    if (flash := _FLASH.get(str(changed.get("flash_attention")))) is not None:
        add("OLLAMA_FLASH_ATTENTION", flash, "flash_attention")
    if changed.get("speculation", "draft-mtp") != "draft-mtp":
        add("LLAMA_ARG_SPEC_TYPE", changed["speculation"], "speculation")
        if changed["speculation"] in DRAFT_KINDS and "speculation_tokens" in changed:
            add(DRAFT_TOKENS_ARG, changed["speculation_tokens"], "speculation_tokens")
    if "openmp_wait" in changed:
        add(OPENMP_WAIT, changed["openmp_wait"], "openmp_wait")
    for knob in _ENGINE_KNOBS:
        if knob in changed and (knob != "draft_model" or changed.get("speculation") in DRAFT_KINDS):
            add(ARG_OF_KNOB[knob], render_arg(knob, changed[knob]), knob)
    k, v = knobs.get("kv_type_k"), knobs.get("kv_type_v")
    if {"kv_type_k", "kv_type_v"} & changed.keys():
        if k == v:
            add("OLLAMA_KV_CACHE_TYPE", k, "kv_type_k")
        else:
            # Different types for K and V have no variable of Ollama's own.
            add("LLAMA_ARG_CACHE_TYPE_K", k, "kv_type_k")
            add("LLAMA_ARG_CACHE_TYPE_V", v, "kv_type_v")
    return found


def _config(changed: Mapping[str, KnobValue]) -> list[Setting]:
    """Options that only config.ini carries."""
    found: list[Setting] = []
    if (level := changed.get("priority")) in PRIORITIES:
        found.append(Setting("config", PRIORITY_OPTION, str(PRIORITIES.index(str(level))), "priority"))
    if "batch_threads" in changed:
        found.append(Setting("config", BATCH_THREADS_OPTION, str(changed["batch_threads"]), "batch_threads"))
    found += [Setting("config", option, str(value), "polling") for option, value in polling_options(changed).items()]
    if changed.get("speculation") in DRAFT_KINDS:
        return found
    match = length_options(str(changed.get("speculation"))).get("speculation_match")
    for option, value in speculation_options(changed).items():
        knob = "speculation_match" if option == match else "speculation_tokens"
        found.append(Setting("config", option, str(value), knob))
    return found


def _parameters(changed: Mapping[str, KnobValue], knobs: Knobs) -> list[Setting]:
    found = [
        Setting("model", parameter, str(changed[knob]), knob)
        for knob, parameter in PARAMETER_OF_KNOB.items()
        if knob in changed
    ]
    total = total_context_tokens(knobs)
    if "batch" in knobs and "batch" not in changed and total and default_batch(total) != knobs["batch"]:
        # Left to itself, num_batch would grow with the context.
        found.append(Setting("model", "num_batch", str(knobs["batch"]), "batch"))
    if changed.get("speculation") == "draft-mtp":
        # In the environment it would stop every model without such layers.
        tokens = changed.get("speculation_tokens", _HEADS_TOKENS)
        found.append(Setting("model", HEADS_PARAMETER, str(tokens), "speculation"))
    if "load_mode" in changed and changed["load_mode"] in ("none", "mmap"):
        found.append(Setting("model", "use_mmap", str(changed["load_mode"] == "mmap").lower(), "load_mode"))
    if knobs.get("ubatch") not in (None, knobs.get("batch")) and {"batch", "ubatch"} & changed.keys():
        # num_batch sets both; only without it do the two variables reach the engine.
        found = [setting for setting in found if setting.key != "num_batch"]
        found.append(Setting("model", "num_batch", "-1", "batch"))
        found.append(Setting("environment", "LLAMA_ARG_BATCH", str(knobs["batch"]), "batch"))
        found.append(Setting("environment", "LLAMA_ARG_UBATCH", str(knobs["ubatch"]), "ubatch"))
    return found


def parse_settings(
    environ: Mapping[str, str], parameters: Mapping[str, object], options: Mapping[str, str] | None = None
) -> dict[str, KnobValue]:
    """Knobs that a server's environment, a model's parameters and the ``options`` of a config.ini set.

    What is not understood is left out.
    """
    knobs = _parse_options(options or {}, environ.get("LLAMA_ARG_SPEC_TYPE"))
    numbers = {"slots": "OLLAMA_NUM_PARALLEL", "max_loaded_models": "OLLAMA_MAX_LOADED_MODELS"}
    numbers |= {"context_tokens": "OLLAMA_CONTEXT_LENGTH", "threads": "LLAMA_ARG_THREADS"}
    for knob, name in numbers.items():
        if environ.get(name, "").isdecimal() and int(environ[name]) > 0:
            knobs[knob] = int(environ[name])
    if (seconds := parse_keep_alive(environ.get("OLLAMA_KEEP_ALIVE", ""))) is not None:
        knobs["keep_alive_s"] = seconds
    if flash := environ.get("OLLAMA_FLASH_ATTENTION"):
        # Anything but a false value means on: envconfig/config.go:181-183.
        knobs["flash_attention"] = "off" if flash.lower() in ("0", "f", "false") else "on"
    for letter in ("k", "v"):
        if kind := environ.get("OLLAMA_KV_CACHE_TYPE") or environ.get(f"LLAMA_ARG_CACHE_TYPE_{letter.upper()}"):
            knobs[f"kv_type_{letter}"] = kind.lower()
    if kind := environ.get("LLAMA_ARG_SPEC_TYPE"):
        knobs["speculation"] = kind
    if (wait := environ.get(OPENMP_WAIT, "").lower()) in ("active", "passive"):
        knobs["openmp_wait"] = wait
    if isinstance(heads := parameters.get(HEADS_PARAMETER), int) and heads > 0:
        knobs |= {"speculation": "draft-mtp"} | ({} if heads == _HEADS_TOKENS else {"speculation_tokens": heads})
    engine = parse_llama_args(environ)
    knobs |= {knob: engine[knob] for knob in (*_ENGINE_KNOBS, "gpu_layers", "speculation_tokens") if knob in engine}
    for knob, parameter in PARAMETER_OF_KNOB.items():
        least = 0 if knob == "gpu_layers" else 1
        if isinstance(number := parameters.get(parameter), int) and number >= least:
            knobs[knob] = number
    if "batch" in knobs:
        knobs["ubatch"] = knobs["batch"]
    if isinstance(number := parameters.get("num_batch"), int) and number <= 0:
        # Only then does Ollama leave the two variables to the engine.
        for knob, name in (("batch", "LLAMA_ARG_BATCH"), ("ubatch", "LLAMA_ARG_UBATCH")):
            if environ.get(name, "").isdecimal():
                knobs[knob] = int(environ[name])
    return knobs


def _parse_options(options: Mapping[str, str], kind: str | None) -> dict[str, KnobValue]:
    knobs: dict[str, KnobValue] = {}
    level = options.get(PRIORITY_OPTION, "")
    if level.isdecimal() and int(level) < len(PRIORITIES):
        knobs["priority"] = PRIORITIES[int(level)]
    threads = options.get(BATCH_THREADS_OPTION, "")
    if threads.isdecimal() and int(threads) > 0:
        knobs["batch_threads"] = int(threads)
    if options.get(POLLING_OPTION, "").isdecimal():
        knobs["polling"] = int(options[POLLING_OPTION])
    return knobs | parse_speculation_options(options, kind)


def parse_keep_alive(text: str) -> int | None:
    """Seconds of an OLLAMA_KEEP_ALIVE (Go duration or whole seconds); -1 for ever, None where it is none."""
    from velollm.units import parse_duration_s

    seconds = parse_duration_s(text) if text.strip() else None
    if seconds is None:
        return None
    return -1 if seconds < 0 else round(seconds)
