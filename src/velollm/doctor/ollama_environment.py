"""Ollama's variables: what contradicts itself, and what is not read as it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.gotext import clean, is_duration, is_uint, parse_bool
from velollm.facts import Facts
from velollm.knobs import KV_TYPES, QUANTIZED_KV_TYPES

_NAME = "ollama-environment"
_NUMBERS = (
    "OLLAMA_NUM_PARALLEL",
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_MAX_QUEUE",
    "OLLAMA_GPU_OVERHEAD",
)
_DURATIONS = ("OLLAMA_KEEP_ALIVE", "OLLAMA_LOAD_TIMEOUT")
_SWITCHES = ("OLLAMA_FLASH_ATTENTION", "OLLAMA_SCHED_SPREAD", "OLLAMA_VULKAN", "OLLAMA_IGPU_ENABLE")
_ON_WORDS = frozenset({"on", "yes", "y", "enable", "enabled"})
_WITHOUT_EFFECT = {
    "OLLAMA_NEW_ENGINE": "removed in Ollama 0.30",
    "OLLAMA_MULTIUSER_CACHE": "removed in Ollama 0.30",
    "OLLAMA_GPU_OVERHEAD": "from Ollama 0.30 on it reserves nothing for GGUF models; LLAMA_ARG_FIT_TARGET (MiB) does",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds OLLAMA_* variables that contradict each other or are not read as they look.

    Critical: a quantized KV cache with flash attention off, or an unknown KV type; every model
    then fails to load. Warnings: a number or time that Ollama cannot read (it takes its default in silence),
    and a switch whose text is neither true nor false to it, which means on, even for `off` and
    `auto`. Notes: variables without effect.
    """
    if facts.environment is None:
        return
    env = {name: text for name, raw in facts.environment.items() if (text := clean(raw))}
    yield from _kv_type(facts, env)
    yield from _switches(facts, env)
    yield from _unreadable(facts, env)
    for name, why in _WITHOUT_EFFECT.items():
        if name in env:
            yield _finding(facts, env, "note", f"{name} has no effect: {why}", f"unset {name}", name)


def _kv_type(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    """KV cache types that make every load fail (quantized V without flash attention: HTTP 500)."""
    for name in ("OLLAMA_KV_CACHE_TYPE", "LLAMA_ARG_CACHE_TYPE_V"):
        kind = env.get(name)
        if kind is None or (name != "OLLAMA_KV_CACHE_TYPE" and "OLLAMA_KV_CACHE_TYPE" in env):
            continue
        if name == "OLLAMA_KV_CACHE_TYPE" and kind not in KV_TYPES:
            title = f"the KV cache type '{kind}' does not exist: every model fails to load"
            yield _finding(facts, env, "critical", title, f"export {name}=q8_0  # or unset {name}", name)
        elif kind in QUANTIZED_KV_TYPES and parse_bool(env.get("OLLAMA_FLASH_ATTENTION", "")) is False:
            title = f"a KV cache of type {kind} needs flash attention, which is off: every model fails to load"
            yield _finding(
                facts, env, "critical", title, "unset OLLAMA_FLASH_ATTENTION", name, "OLLAMA_FLASH_ATTENTION"
            )


def _switches(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    for name in _SWITCHES:
        text = env.get(name)
        if text is None or parse_bool(text) is not None or text.lower() in _ON_WORDS:
            continue
        title = f"{name}={text} means on: Ollama knows only true and false, and takes other text as true"
        fix = f"unset {name}" if text.lower() == "auto" else f"export {name}=0"
        yield _finding(facts, env, "warning", title, fix, name)


def _unreadable(facts: Facts, env: Mapping[str, str]) -> Iterator[Finding]:
    for names, readable, what in ((_NUMBERS, is_uint, "whole number"), (_DURATIONS, is_duration, "time such as 30m")):
        for name in names:
            if name in env and not readable(env[name]):
                title = f"{name}={env[name]} is no {what}: Ollama takes its default instead"
                yield _finding(facts, env, "warning", title, f"unset {name}  # or give it a {what}", name)


def _finding(facts: Facts, env: Mapping[str, str], severity: Severity, title: str, fix: str, *names: str) -> Finding:
    seen = tuple(evidence(facts, f"environment.{name}", env[name], f"environment variable {name}") for name in names)
    return Finding(_NAME, severity, title, seen, fix)


check = Check(_NAME, "OLLAMA_* variables", "critical", True, run)
