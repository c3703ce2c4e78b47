"""Limits of the control group."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, Severity, evidence
from velollm.facts import Facts
from velollm.units import GIB, render_bytes

_NAME = "container-limits"
_WHY = "tools and engines see the whole machine, and plan with memory and cores that they do not have"

# The smallest models in use, with context and buffers, need about this much.
_TIGHT_BYTES = GIB


def run(facts: Facts) -> Iterator[Finding]:
    """Notes a memory limit or CPU quota of the control group; tight ones are warnings.

    Tight is less than 1 GiB left under the memory limit, or less than one whole CPU. Tools that
    ask the machine show the host's memory and cores instead, and so do engines.
    """
    yield from _memory(facts)
    quota = facts.cgroup.cpu_quota if facts.cgroup else None
    if quota is not None:
        shown = facts.cpu.online_cores or facts.cpu.logical_cores if facts.cpu else None
        seen = [evidence(facts, "cgroup.cpu_quota", f"{quota:g} CPUs")]
        if shown is not None:
            seen.append(evidence(facts, "cpu.logical_cores", f"{shown} CPUs shown"))
        yield Finding(
            _NAME,
            "warning" if quota < 1 else "note",
            f"the CPU quota is {quota:g} CPUs",
            tuple(seen),
            "give the container more CPUs, on the host: docker update --cpus N CONTAINER",
            _WHY,
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    limit = memory.limit_bytes if memory else None
    if limit is None and facts.cgroup:
        limit = facts.cgroup.memory_limit_bytes
    total = memory.total_bytes if memory else None
    if limit is None or (total is not None and limit >= total):
        return
    used = memory.limit_used_bytes if memory else None
    left = limit - (used or 0)
    severity: Severity = "warning" if left < _TIGHT_BYTES else "note"
    seen: list[Evidence] = [evidence(facts, "memory.limit_bytes", render_bytes(limit))]
    if used is not None:
        seen.append(evidence(facts, "memory.limit_used_bytes", f"{render_bytes(used)} used"))
    if total is not None:
        seen.append(evidence(facts, "memory.total_bytes", f"{render_bytes(total)} shown"))
    title = f"the memory limit is {render_bytes(limit)}"
    if severity == "warning":
        rest = "" if used is None else f", and {render_bytes(max(0, left))} of it is left"
        title += f"{rest}: too little for a model"
    fix = "give the container more memory, on the host: docker update --memory 8g CONTAINER"
    yield Finding(_NAME, severity, title, tuple(seen), fix, _WHY)


check = Check(_NAME, "Limits of the container", "warning", False, run)
