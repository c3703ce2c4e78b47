"""llama.cpp's variables: values that stop every load, and settings that Ollama overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.cores import uses_ollama
from velollm.doctor.gotext import clean, parse_bool
from velollm.facts import Facts
from velollm.knobs import KV_TYPES, QUANTIZED_KV_TYPES, SPECULATION_KINDS

_NAME = "llama-environment"

# Values and names: llama.cpp b10488, common/arg.cpp and common/speculative.cpp.
_DRAFT_KINDS = ("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark")
_OFF_WORDS = frozenset({"off", "disabled", "false", "0"})
_WORDS: Mapping[str, frozenset[str]] = {
    "LLAMA_ARG_CACHE_TYPE_K": frozenset(KV_TYPES),
    "LLAMA_ARG_CACHE_TYPE_V": frozenset(KV_TYPES),
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K": frozenset(KV_TYPES),
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V": frozenset(KV_TYPES),
    "LLAMA_ARG_LOAD_MODE": frozenset({"auto", "none", "mmap", "mlock", "mmap+mlock", "dio"}),
    "LLAMA_ARG_SPEC_TYPE": frozenset({*SPECULATION_KINDS, *_DRAFT_KINDS}),
    "LLAMA_ARG_SPLIT_MODE": frozenset({"none", "layer", "row", "tensor"}),
    "LLAMA_ARG_NUMA": frozenset({"distribute", "isolate", "numactl"}),
    "LLAMA_ARG_FLASH_ATTN": frozenset({"on", "enabled", "true", "1", "auto", "-1", *_OFF_WORDS}),
}
_NUMBERS = (
    "LLAMA_ARG_THREADS",
    "LLAMA_ARG_CTX_SIZE",
    "LLAMA_ARG_N_PARALLEL",
    "LLAMA_ARG_BATCH",
    "LLAMA_ARG_UBATCH",
    "LLAMA_ARG_CACHE_RAM",
    "LLAMA_ARG_CACHE_REUSE",
    "LLAMA_ARG_CTX_CHECKPOINTS",
    "LLAMA_ARG_SPEC_DRAFT_N_MAX",
    "LLAMA_ARG_SPEC_DRAFT_N_MIN",
    "LLAMA_ARG_N_CPU_MOE",
    "LLAMA_ARG_MAIN_GPU",
)
_REMOVED = {
    "LLAMA_ARG_DRAFT_MAX": "LLAMA_ARG_SPEC_DRAFT_N_MAX",
    "LLAMA_ARG_DRAFT_MIN": "LLAMA_ARG_SPEC_DRAFT_N_MIN",
}
# Ollama gives its engine these as flags, and flags win over variables; what to set instead.
_OVERRIDDEN = {
    "LLAMA_ARG_MODEL": "",
    "LLAMA_ARG_PORT": "",
    "LLAMA_ARG_HOST": "OLLAMA_HOST",
    "LLAMA_ARG_CTX_SIZE": "OLLAMA_CONTEXT_LENGTH",
    "LLAMA_ARG_N_PARALLEL": "OLLAMA_NUM_PARALLEL",
    "LLAMA_ARG_FLASH_ATTN": "OLLAMA_FLASH_ATTENTION",
    "LLAMA_ARG_LOG_VERBOSITY": "OLLAMA_DEBUG",
    "LLAMA_ARG_OFFLINE": "",
    "LLAMA_ARG_UI": "",
    "LLAMA_ARG_BATCH": "the parameter num_batch",
    "LLAMA_ARG_UBATCH": "the parameter num_batch",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds LLAMA_ARG_* variables that stop the engine, contradict each other, or do nothing under Ollama.

    Critical: a value that does not exist or a name that was removed. The engine then ends while it reads its
    settings, and every load fails without a reason; an unknown name is only ignored. Warnings: two
    variables that say opposite things, a key that locks Ollama out of its own engine, and
    speculation that only some models can do. Notes: variables that Ollama always overrides.
    """
    if facts.environment is None:
        return
    env = {name: text for name, raw in facts.environment.items() if (text := clean(raw))}
    yield from _refused(facts, env)
    yield from _contradictions(facts, env)
    yield from _locked_out(facts, env)
    yield from _overridden(facts, env)


def _refused(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    for name, instead in _REMOVED.items():
        if name in env:
            title = f"{name} was removed from llama.cpp: every model fails to load"
            yield _finding(facts, env, "critical", title, f"unset {name}  # now {instead}", name)
    for name, words in _WORDS.items():
        values = env.get(name, "").split(",") if name == "LLAMA_ARG_SPEC_TYPE" else [env.get(name, "")]
        if name in env and (bad := [value for value in values if value.strip() not in words]):
            title = f"{name} does not know '{bad[0]}': every model fails to load"
            yield _finding(facts, env, "critical", title, f"unset {name}  # or one of {', '.join(sorted(words))}", name)
    for name in _NUMBERS:
        if name in env and not re.match(r"[+-]?\d", env[name]):
            title = f"{name}={env[name]} is no number: every model fails to load"
            yield _finding(facts, env, "critical", title, f"unset {name}", name)
    kind = env.get("LLAMA_ARG_CACHE_TYPE_V")
    if kind in QUANTIZED_KV_TYPES and env.get("LLAMA_ARG_FLASH_ATTN") in _OFF_WORDS and not uses_ollama(facts):
        title = f"a V cache of type {kind} needs flash attention, which is off: every model fails to load"
        names = ("LLAMA_ARG_CACHE_TYPE_V", "LLAMA_ARG_FLASH_ATTN")
        yield _finding(facts, env, "critical", title, "unset LLAMA_ARG_FLASH_ATTN", *names)


def _contradictions(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    for name in env:
        plain = name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_", 1)
        if name.startswith("LLAMA_ARG_NO_") and plain in env:
            yield _finding(facts, env, "warning", f"{plain} and {name} are both set", f"unset {name}", plain, name)
    shared = env.get("OLLAMA_KV_CACHE_TYPE")
    for name in ("LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"):
        if shared is not None and env.get(name, shared) != shared:
            title = f"OLLAMA_KV_CACHE_TYPE={shared} wins over {name}={env[name]}"
            yield _finding(facts, env, "warning", title, f"unset {name}", name, "OLLAMA_KV_CACHE_TYPE")
    for name, ours, theirs in _pairs(env):
        if ours != theirs:
            title = f"{_OVERRIDDEN[name]}={env[_OVERRIDDEN[name]]} wins over {name}={env[name]}"
            yield _finding(facts, env, "warning", title, f"unset {name}", name, _OVERRIDDEN[name])
    if "draft-mtp" in env.get("LLAMA_ARG_SPEC_TYPE", "").split(","):
        title = "with LLAMA_ARG_SPEC_TYPE=draft-mtp every model without MTP layers fails to load"
        fix = "unset LLAMA_ARG_SPEC_TYPE  # and give draft_num_predict to the models that have such layers"
        yield _finding(facts, env, "warning", title, fix, "LLAMA_ARG_SPEC_TYPE")


def _pairs(env: Mapping[str, str]) -> Iterator[tuple[str, object, object]]:
    """(variable, what it means, what Ollama's variable of the same sense means), where both can be read."""
    for name, other in (
        ("LLAMA_ARG_N_PARALLEL", "OLLAMA_NUM_PARALLEL"),
        ("LLAMA_ARG_CTX_SIZE", "OLLAMA_CONTEXT_LENGTH"),
    ):
        ours, theirs = env.get(name, ""), env.get(other, "")
        if ours.isdecimal() and theirs.isdecimal():
            slots = env.get("OLLAMA_NUM_PARALLEL", "1")
            factor = int(slots) if name == "LLAMA_ARG_CTX_SIZE" and slots.isdecimal() else 1
            yield name, int(ours), int(theirs) * max(1, factor)
    switch = parse_bool(env.get("OLLAMA_FLASH_ATTENTION", ""))
    ours = env.get("LLAMA_ARG_FLASH_ATTN", "auto")
    if switch is not None and ours not in ("auto", "-1") and ours in _WORDS["LLAMA_ARG_FLASH_ATTN"]:
        yield "LLAMA_ARG_FLASH_ATTN", ours not in _OFF_WORDS, switch


def _locked_out(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    severity: Severity = "warning" if uses_ollama(facts) else "note"
    for name in ("LLAMA_API_KEY", "LLAMA_ARG_API_PREFIX"):
        if name in env:
            title = f"{name} makes Ollama's engine refuse Ollama's own calls"
            shown = {**env, "LLAMA_API_KEY": "(set)"}
            yield _finding(facts, shown, severity, title, f"unset {name}", name)


def _overridden(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    for name, instead in _OVERRIDDEN.items():
        if name in env:
            title = f"{name} has no effect through Ollama, which gives its engine its own value"
            fix = f"unset {name}" + (f"  # and set {instead}" if instead else "")
            yield _finding(facts, env, "note", title, fix, name)


def _finding(facts: Facts, env: Mapping[str, str], severity: Severity, title: str, fix: str, *names: str) -> Finding:
    seen = tuple(evidence(facts, f"environment.{name}", env[name], f"environment variable {name}") for name in names)
    return Finding(_NAME, severity, title, seen, fix)


check = Check(_NAME, "LLAMA_ARG_* variables", "critical", True, run)
