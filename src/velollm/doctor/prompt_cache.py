"""Main memory that the engine's prompt cache may take."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.environment import judged_environment
from velollm.facts import Facts
from velollm.units import MIB, render_bytes

_NAME = "prompt-cache"
_WHY = "it grows with every conversation until the machine swaps, and `ollama ps` does not show it"
_SHARE = 0.4
_KEPT_SHARE = 0.1


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a prompt cache that may take more than two fifths of main memory: 8 GiB for each model by default.

    llama-server keeps the states of earlier prompts in main memory, up to a limit for each loaded model
    (LLAMA_ARG_CACHE_RAM, in MiB). As long as little of it is used it is a note; a warning once it holds
    more than a tenth of the machine's memory while less than that is available, and without any limit.
    """
    server, memory = facts.server, facts.memory
    if server is None or server.remote or memory is None or not memory.total_bytes or server.generation == "runner":
        return
    total = min(memory.total_bytes, memory.limit_bytes or memory.total_bytes)
    engine = server.activity.engine if server.activity else None
    limit = engine.prompt_cache_limit_bytes if engine else None
    if limit is None or 0 <= limit <= _SHARE * total:
        return
    used, available = engine.prompt_cache_bytes if engine else None, memory.available_bytes
    tight = available is not None and used is not None and used > _KEPT_SHARE * total > available
    severity: Severity = "warning" if tight or limit < 0 else "note"
    wanted = max(256, round(_KEPT_SHARE * total / MIB / 256) * 256)
    shown = f"{limit // MIB} MiB" if limit >= 0 else "no limit"
    much = render_bytes(limit) if limit >= 0 else "all"
    title = f"the prompt cache of each loaded model may take {much} of {render_bytes(total)} memory"
    seen = [evidence(facts, "server.activity", f"prompt cache is enabled, size limit: {shown}")]
    if used is not None:
        seen.append(evidence(facts, "server.activity", f"{render_bytes(used)} of it used at most"))
    seen.append(evidence(facts, "memory.total_bytes", render_bytes(total)))
    env = judged_environment(facts)
    name = "LLAMA_ARG_CACHE_RAM"
    fix = env.set(name, wanted) if env else f"give the server {name}={wanted}"
    mend = env.mend(**{name: wanted}) if env and severity == "warning" else None
    yield Finding(_NAME, severity, title, tuple(seen), fix, _WHY, mend)


check = Check(_NAME, "Memory that the prompt cache may take", "warning", True, run)
