"""Threads against the cores that may be used."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, EnvironmentMend, Evidence, Finding, Severity, evidence
from velollm.doctor.cores import estimate_engine_threads, whole_number
from velollm.doctor.environment import Environment, judged_environment
from velollm.doctor.mend import set_variable
from velollm.facts import CpuFacts, Facts

_NAME = "thread-count"
_WHY = "threads without a core of their own hold up all others after every operation"
_VARIABLES = ("LLAMA_ARG_THREADS", "OMP_NUM_THREADS")


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a thread count above the cores that may be used.

    All threads of an engine wait for each other after every operation; those that have no core of
    their own hold up the rest. A count can be too high because a variable says so, because a
    running server was started with it, or because an engine counts the machine's cores and does
    not see a CPU quota. With two threads on a core (SMT) a count above the cores is only a note.
    """
    cpu = facts.cpu
    if cpu is None or cpu.usable_cores is None:
        return
    env = judged_environment(facts)
    for name in _VARIABLES if env else ():
        count = whole_number(facts, name)
        if env is not None and count is not None and (found := _too_many(facts, cpu, env, count, name)):
            yield found
    server = facts.server
    if server is not None and server.threads is not None and server.threads > cpu.usable_cores:
        yield Finding(
            _NAME,
            "warning",
            f"the server runs {server.threads} threads on {cpu.usable_cores} usable CPUs",
            (evidence(facts, "server.threads", server.threads), _usable(facts, cpu)),
            set_variable(server, _VARIABLES[0], str(_best(cpu))),
            _WHY,
            EnvironmentMend({_VARIABLES[0]: str(_best(cpu))}),
        )
    yield from _unseen_quota(facts, cpu, env)


def _too_many(facts: Facts, cpu: CpuFacts, env: Environment, count: int, name: str) -> Finding | None:
    assert cpu.usable_cores is not None
    cores = cpu.usable_physical_cores
    severity: Severity
    if count > cpu.usable_cores:
        severity, than = "warning", f"{cpu.usable_cores} usable CPUs"
    elif cores is not None and count > cores:
        severity, than = "note", f"{cores} usable physical cores"
    else:
        return None
    seen = (*env.seen(name), _usable(facts, cpu))
    title = f"{name} asks for {count} threads on {than}"
    mend = env.mend(**{name: _best(cpu)}) if severity == "warning" else None
    return Finding(_NAME, severity, title, seen, env.set(name, _best(cpu)), _WHY, mend)


def _unseen_quota(facts: Facts, cpu: CpuFacts, env: Environment | None) -> Iterator[Finding]:
    """An engine that counts cores would start more threads than the quota has time for."""
    quota = facts.cgroup.cpu_quota if facts.cgroup else None
    started = estimate_engine_threads(cpu)
    if quota is None or started is None or started <= quota or whole_number(facts, "LLAMA_ARG_THREADS") is not None:
        return
    known = env is not None
    name, best = _VARIABLES[0], _best(cpu)
    yield Finding(
        _NAME,
        "warning" if known else "note",
        f"an engine would start {started} threads where the CPU quota is {quota:g}",
        (
            evidence(facts, "cgroup.cpu_quota", quota),
            Evidence("cores that the machine shows", str(started)),
            Evidence("LLAMA_ARG_THREADS", "not set" if known else "unknown"),
        ),
        env.set(name, best) if env else f"export {name}={best}",
        _WHY,
        env.mend(**{name: best}) if env else None,
    )


def _best(cpu: CpuFacts) -> int:
    return cpu.usable_physical_cores or cpu.usable_cores or 1


def _usable(facts: Facts, cpu: CpuFacts) -> Evidence:
    return evidence(facts, "cpu.usable_cores", cpu.usable_cores)


check = Check(_NAME, "Threads against usable cores", "warning", True, run)
