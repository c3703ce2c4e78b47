"""Models that the server cannot load."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.doctor.base import Check, EnvironmentMend, Finding, Mend, Severity, evidence
from velollm.doctor.environment import judged_environment
from velollm.doctor.mend import restart, unset_variable
from velollm.facts import Facts, FailedLoad, ServerFacts

_NAME = "models-not-loading"
_WHY = "every request to them fails, and clients are only told `exit status 1`"
_VARIABLE = re.compile(r'environment variable "?(LLAMA_ARG_\w+)')
_ARGUMENT = re.compile(r"--(cache-type-[kv])\b|Unsupported cache type")


def run(facts: Facts) -> Iterator[Finding]:
    """Finds models whose last load failed, and says why, in the words of the engine.

    Clients are only told `exit status 1`; the reason is in the log. Where every load since the
    server's start has failed it is critical: one wrong variable does that to every model.
    """
    server = facts.server
    seen = server.activity if server else None
    if server is None or seen is None or not seen.failures:
        return
    severity: Severity = "critical" if seen.failed_loads >= seen.loads else "warning"
    for reason, failures in _by_reason(seen.failures).items():
        names = ", ".join(failure.model.rpartition("/")[2] for failure in failures)
        every = "no model loads" if severity == "critical" else f"{names} does not load"
        shown = reason or "the log gives no reason"
        found = (
            evidence(facts, "server.activity", shown),
            evidence(facts, "server.activity", f"{seen.failed_loads} of {seen.loads} loads failed: {names}"),
        )
        fix, mend = _fix(facts, server, reason, failures[0])
        yield Finding(_NAME, severity, f"{every}: {shown}", found, fix, _WHY, mend)


def _by_reason(failures: tuple[FailedLoad, ...]) -> dict[str, list[FailedLoad]]:
    found: dict[str, list[FailedLoad]] = {}
    for failure in failures:
        found.setdefault(failure.reason or "", []).append(failure)
    return found


def _fix(facts: Facts, server: ServerFacts, reason: str, failure: FailedLoad) -> tuple[str, Mend | None]:
    """Command and mend. Which variable it is the engine tells, or follows from its words."""
    name = _variable(facts, reason)
    if name is not None:
        return unset_variable(server, name), EnvironmentMend({name: None})
    if "context type MTP" in reason:
        return f"make {failure.model.partition(', ')[0]} again without DRAFT: its draft is a plain model", None
    if re.search(r"out of memory|failed to allocate|more system memory", reason, re.IGNORECASE):
        return f"velollm optimize {failure.model.partition(', ')[0]} --profile low-memory", None
    place = server.log or "the log of the server"
    return f"see the lines before `Load failed` in {place}; then: {restart(server)}", None


def _variable(facts: Facts, reason: str) -> str | None:
    if (found := _VARIABLE.search(reason)) is not None:
        return found.group(1)
    if "quantized V cache" in reason:
        return "OLLAMA_FLASH_ATTENTION"
    if _ARGUMENT.search(reason):
        return "OLLAMA_KV_CACHE_TYPE"
    env = judged_environment(facts)
    known = env is None or "LLAMA_ARG_SPEC_TYPE" in env
    return "LLAMA_ARG_SPEC_TYPE" if "context type MTP" in reason and known else None


check = Check(_NAME, "Models that do not load", "critical", True, run)
