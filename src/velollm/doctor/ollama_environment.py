"""Ollama's variables: what is not read as it looks, and what does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding
from velollm.doctor.environment import Environment, judged_environment
from velollm.doctor.gotext import is_duration, is_uint, parse_bool
from velollm.doctor.mend import noted
from velollm.facts import Facts

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
_SWITCHED_ON = "it switches on what it seems to switch off, or to leave to Ollama"
_ON_WORDS = frozenset({"on", "yes", "y", "enable", "enabled"})
_WITHOUT_EFFECT = {
    "OLLAMA_NEW_ENGINE": "removed in Ollama 0.30",
    "OLLAMA_MULTIUSER_CACHE": "removed in Ollama 0.30",
    "OLLAMA_GPU_OVERHEAD": "from Ollama 0.30 on it reserves nothing for GGUF models; LLAMA_ARG_FIT_TARGET (MiB) does",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds OLLAMA_* variables that are not read as they look.

    Warnings: a number or time that Ollama cannot read (it takes its default in silence), and a switch
    whose text is neither true nor false to it, which means on, even for `off` and `auto`. Notes:
    variables without effect in this version. Looked at is the environment of the server's process,
    else what its log says it took, else its service's, else this shell's.
    """
    env = judged_environment(facts)
    if env is None:
        return
    yield from _switches(env)
    yield from _unreadable(env)
    if facts.server is not None and facts.server.generation == "runner":
        return
    for name, reason in _WITHOUT_EFFECT.items():
        if name in env:
            why = "memory that is counted on as free is used after all" if "OVERHEAD" in name else "it does nothing"
            title = f"{name} has no effect: {reason}"
            yield Finding(_NAME, "note", title, env.seen(name), env.unset(name), why, env.mend(**{name: None}))


def _switches(env: Environment) -> Iterator[Finding]:
    for name in _SWITCHES:
        text = env.get(name)
        if not text or parse_bool(text) is not None or text.lower() in _ON_WORDS:
            continue
        title = f"{name}={text} means on: Ollama knows only true and false, and takes other text as true"
        auto = text.lower() == "auto"
        fix = env.unset(name) if auto else env.set(name, 0)
        mend = env.mend(**{name: None if auto else 0})
        yield Finding(_NAME, "warning", title, env.seen(name), fix, _SWITCHED_ON, mend)


def _unreadable(env: Environment) -> Iterator[Finding]:
    for names, readable, what in ((_NUMBERS, is_uint, "whole number"), (_DURATIONS, is_duration, "time such as 30m")):
        for name in names:
            if name in env and not readable(env.get(name)):
                title = f"{name}={env.get(name)} is no {what}: Ollama takes its default instead"
                fix = noted(env.unset(name), f"or give it a {what}")
                why = "the setting that was meant is not the one that runs, and nobody is told"
                yield Finding(_NAME, "warning", title, env.seen(name), fix, why, env.mend(**{name: None}))


check = Check(_NAME, "OLLAMA_* variables", "warning", True, run)
