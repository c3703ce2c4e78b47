"""Number formats of the KV cache that stop every load."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding
from velollm.doctor.environment import Environment, judged_environment
from velollm.doctor.gotext import parse_bool
from velollm.doctor.mend import noted
from velollm.facts import Facts
from velollm.knobs import KV_TYPES, QUANTIZED_KV_TYPES

_NAME = "kv-cache-type"
_WHY = "each request ends with status 500, and clients are only told `exit status 1`"
_OFF_WORDS = frozenset({"off", "disabled", "false", "0"})


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a KV cache type that does not exist, and a quantized one with flash attention off.

    A quantized V cache is computed by flash attention alone. Ollama checks neither: it hands the type
    to its engine, which ends.
    """
    env = judged_environment(facts)
    if env is None:
        return
    if "OLLAMA_KV_CACHE_TYPE" in env:
        yield from _one(env, "OLLAMA_KV_CACHE_TYPE")
        return
    for name in ("LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"):
        if name in env:
            yield from _one(env, name)


def _one(env: Environment, name: str) -> Iterator[Finding]:
    kind = env.get(name)
    if kind not in KV_TYPES:
        title = f"the KV cache type '{kind}' does not exist: every model fails to load"
        fix = noted(env.unset(name), f"or one of {', '.join(KV_TYPES)}")
        yield Finding(_NAME, "critical", title, env.seen(name), fix, _WHY, env.mend(**{name: None}))
    elif kind in QUANTIZED_KV_TYPES and not name.endswith("_K") and (switch := _flash_off(env)) is not None:
        title = f"a KV cache of type {kind} needs flash attention, which is off: every model fails to load"
        mend = env.mend(**{switch: None})
        yield Finding(_NAME, "critical", title, env.seen(name, switch), env.unset(switch), _WHY, mend)


def _flash_off(env: Environment) -> str | None:
    """The variable that turns flash attention off: through Ollama its own, else llama.cpp's."""
    if parse_bool(env.get("OLLAMA_FLASH_ATTENTION")) is False:
        return "OLLAMA_FLASH_ATTENTION"
    is_ollama = env.server is not None and env.server.engine == "ollama"
    own = any(name.startswith("OLLAMA_") for name in env.values)
    return "LLAMA_ARG_FLASH_ATTN" if not (is_ollama or own) and env.get("LLAMA_ARG_FLASH_ATTN") in _OFF_WORDS else None


check = Check(_NAME, "KV cache types that stop every load", "critical", True, run)
