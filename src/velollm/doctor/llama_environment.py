"""llama.cpp's variables: values that stop every load, and settings that Ollama overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from velollm.doctor.base import Check, Finding, Severity
from velollm.doctor.cores import uses_ollama
from velollm.doctor.environment import Environment, judged_environment
from velollm.doctor.gotext import parse_bool
from velollm.doctor.llamaargs import llama_names
from velollm.doctor.mend import noted
from velollm.facts import Facts
from velollm.knobs import KV_TYPES, SPECULATION_KINDS

_NAME = "llama-environment"
_STOPS = "every load fails, and clients are only told `exit status 1`; GPUs are not found either"
_WHOLE = re.compile(r"\s*[+-]?\d")  # std::stoi takes what begins with a number

# Values and names: llama.cpp b10488, common/arg.cpp and common/speculative.cpp.
_OTHER_KINDS = ("draft-eagle3", "draft-dspark")  # those that are no knob's
_OFF_WORDS = frozenset({"off", "disabled", "false", "0"})
_SWITCH_WORDS = _OFF_WORDS | {"on", "enabled", "true", "1"}
_WORDS: Mapping[str, frozenset[str]] = {
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K": frozenset(KV_TYPES),
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V": frozenset(KV_TYPES),
    "LLAMA_ARG_LOAD_MODE": frozenset({"auto", "none", "mmap", "mlock", "mmap+mlock", "dio"}),
    "LLAMA_ARG_SPEC_TYPE": frozenset({*SPECULATION_KINDS, *_OTHER_KINDS}),
    "LLAMA_ARG_SPLIT_MODE": frozenset({"none", "layer", "row", "tensor"}),
    "LLAMA_ARG_NUMA": frozenset({"distribute", "isolate", "numactl"}),
    "LLAMA_ARG_FLASH_ATTN": frozenset({"on", "enabled", "true", "1", "auto", "-1", *_OFF_WORDS}),
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
    speculation that only some models can do. Notes: variables that Ollama always overrides. Looked
    at is the environment of the server's process, where one runs, else this shell's.
    """
    env = judged_environment(facts)
    if env is None:
        return
    yield from _refused(env)
    yield from _contradictions(env)
    yield from _locked_out(facts, env)
    yield from _overridden(env)


def _refused(env: Environment) -> Iterator[Finding]:
    names = llama_names()
    for name, instead in names.removed.items():
        if name in env:
            title = f"{name} was removed from llama.cpp: every model fails to load"
            mend = env.mend(**{name: None, instead: env.get(name)} if instead not in env else {name: None})
            fix = noted(env.unset(name), f"now {instead}")
            yield Finding(_NAME, "critical", title, env.seen(name), fix, _STOPS, mend)
    for name, words in _WORDS.items():
        values = env.get(name).split(",") if name == "LLAMA_ARG_SPEC_TYPE" else [env.get(name)]
        if name in env and (bad := [value for value in values if value.strip() not in words]):
            title = f"{name} does not know '{bad[0]}': every model fails to load"
            fix = noted(env.unset(name), f"or one of {', '.join(sorted(words))}")
            yield Finding(_NAME, "critical", title, env.seen(name), fix, _STOPS, env.mend(**{name: None}))
    for name, value in sorted(env.values.items()):
        kind = names.kind(name) if name not in _WORDS else None
        wrong = (kind == "number" and not _WHOLE.match(value)) or (kind == "switch" and value not in _SWITCH_WORDS)
        if wrong:
            what = "number" if kind == "number" else "switch (on, off)"
            title = f"{name}={value} is no {what}: every model fails to load"
            yield Finding(_NAME, "critical", title, env.seen(name), env.unset(name), _STOPS, env.mend(**{name: None}))


def _contradictions(env: Environment) -> Iterator[Finding]:
    for name in env.values:
        plain = name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_", 1)
        if name.startswith("LLAMA_ARG_NO_") and plain in env:
            yield _warning(env, f"{plain} and {name} are both set", name, plain)
    shared = env.get("OLLAMA_KV_CACHE_TYPE")
    for name in ("LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"):
        if shared and env.get(name, shared) != shared:
            title = f"OLLAMA_KV_CACHE_TYPE={shared} wins over {name}={env.get(name)}"
            yield _warning(env, title, name, "OLLAMA_KV_CACHE_TYPE")
    for name, ours, theirs in _pairs(env):
        if ours != theirs:
            title = f"{_OVERRIDDEN[name]}={env.get(_OVERRIDDEN[name])} wins over {name}={env.get(name)}"
            yield _warning(env, title, name, _OVERRIDDEN[name])
    if "draft-mtp" in env.get("LLAMA_ARG_SPEC_TYPE").split(","):
        name = "LLAMA_ARG_SPEC_TYPE"
        title = f"with {name}=draft-mtp every model without MTP layers fails to load"
        fix = noted(env.unset(name), "and give draft_num_predict to the models that have such layers")
        yield Finding(_NAME, "warning", title, env.seen(name), fix, _STOPS, env.mend(**{name: None}))


def _warning(env: Environment, title: str, name: str, other: str) -> Finding:
    why = "the setting that was meant is not the one that runs"
    return Finding(_NAME, "warning", title, env.seen(name, other), env.unset(name), why, env.mend(**{name: None}))


def _pairs(env: Environment) -> Iterator[tuple[str, object, object]]:
    """(variable, what it means, what Ollama's variable of the same sense means), where both can be read."""
    for name, other in (
        ("LLAMA_ARG_N_PARALLEL", "OLLAMA_NUM_PARALLEL"),
        ("LLAMA_ARG_CTX_SIZE", "OLLAMA_CONTEXT_LENGTH"),
    ):
        ours, theirs = env.get(name), env.get(other)
        if ours.isdecimal() and theirs.isdecimal():
            slots = env.get("OLLAMA_NUM_PARALLEL", "1")
            factor = int(slots) if name == "LLAMA_ARG_CTX_SIZE" and slots.isdecimal() else 1
            yield name, int(ours), int(theirs) * max(1, factor)
    switch = parse_bool(env.get("OLLAMA_FLASH_ATTENTION"))
    ours = env.get("LLAMA_ARG_FLASH_ATTN", "auto")
    if switch is not None and ours not in ("auto", "-1") and ours in _WORDS["LLAMA_ARG_FLASH_ATTN"]:
        yield "LLAMA_ARG_FLASH_ATTN", ours not in _OFF_WORDS, switch


def _locked_out(facts: Facts, env: Environment) -> Iterator[Finding]:
    severity: Severity = "warning" if uses_ollama(facts) else "note"
    why = "Ollama sends its engine no key and no prefix, so no request is answered"
    for name in ("LLAMA_API_KEY", "LLAMA_ARG_API_PREFIX"):
        if name in env:
            title = f"{name} makes Ollama's engine refuse Ollama's own calls"
            yield Finding(_NAME, severity, title, env.seen(name), env.unset(name), why, env.mend(**{name: None}))


def _overridden(env: Environment) -> Iterator[Finding]:
    for name, instead in _OVERRIDDEN.items():
        if name in env:
            title = f"{name} has no effect through Ollama, which gives its engine its own value"
            fix = noted(env.unset(name), f"and set {instead}") if instead else env.unset(name)
            why = "the setting that was meant is not the one that runs"
            yield Finding(_NAME, "note", title, env.seen(name), fix, why, env.mend(**{name: None}))


check = Check(_NAME, "LLAMA_ARG_* variables", "critical", True, run)
