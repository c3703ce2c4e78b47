"""How many CPU threads compute tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from velollm.facts import CpuFacts, Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned
from velollm.units import parse_cpu_list

# From this much of one core on, a neighbour holds up every barrier of the engine's threads.
_BUSY_CORES = 0.5


@dataclass(frozen=True)
class _Cores:
    """``allowed``: threads that may run at once; ``reachable``: cores they and the neighbours share."""

    allowed: int
    reachable: int
    cpus: frozenset[int] | None
    performance_only: bool


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """One thread for each usable physical core, less the cores that others keep busy; at least one.

    All threads of the engine wait for each other after every operation. One that must share its core
    holds up all others: on a machine with two cores, one of them busy with something else, two
    threads fell from 52 to 0.9 tokens/s, and one thread held 33. The price: while the machine is
    idle that one thread is 38% slower than two, so run `velollm optimize` again when the neighbour
    is gone. The rule looks at what is sampled now and at the last 15 minutes; where only the past
    was busy, fewer threads are named as worth measuring, not chosen. On processors with
    performance and efficiency cores, only the performance cores count.
    """
    if advice := pinned(wish, "threads"):
        return advice
    cores = _cores(facts)
    if cores is None:
        return Skip("how many cores may be used is unknown", ("cpu.usable_physical_cores",))
    now, past = _busy_now(facts, cores), _busy_past(facts)
    choice = cores.allowed if not now else _without(cores, now)
    others = [cores.allowed, _without(cores, past or 0), choice - 1, choice + 1]
    candidates = [n for n in dict.fromkeys(others) if 1 <= n <= cores.allowed and n != choice]
    return Advice(
        {"threads": choice},
        _reason(cores, choice, now, past),
        candidates=tuple({"threads": n} for n in candidates),
    )


def _without(cores: _Cores, busy: int) -> int:
    """Threads left when ``busy`` of the reachable cores belong to others."""
    return max(1, min(cores.allowed, cores.reachable - busy))


def _cores(facts: Facts) -> _Cores | None:
    cpu = facts.cpu
    if cpu is None:
        return None
    usable = cpu.usable_physical_cores
    if usable is None and cpu.usable_cores == 1:
        usable = 1
    if usable is None:
        return None
    cpus = _own_cpus(facts)
    if cpu.performance_cores and cpu.efficiency_cores:
        fast = _fast_cores(cpu, cpus)
        if fast and fast[0] <= usable:
            return _Cores(fast[0], fast[0], fast[1], True)
    return _Cores(usable, max(usable, _reachable(facts, cpus)), cpus, False)


def _own_cpus(facts: Facts) -> frozenset[int] | None:
    """CPUs of the affinity mask and the cpuset; None where neither is known."""
    texts = (facts.cpu.affinity if facts.cpu else None, facts.cgroup.cpuset if facts.cgroup else None)
    sets = [cpus for text in texts if text and (cpus := parse_cpu_list(text))]
    return frozenset.intersection(*sets) if sets else None


def _fast_cores(cpu: CpuFacts, own: frozenset[int] | None) -> tuple[int, frozenset[int] | None] | None:
    """Usable performance cores and their CPUs; None where the mask leaves none of them."""
    assert cpu.performance_cores
    fast = parse_cpu_list(cpu.performance_cpus) if cpu.performance_cpus else None
    if not fast:
        return cpu.performance_cores, None
    usable = fast if own is None else fast & own
    if not usable:
        return None
    threads_per_core = max(1, round(len(fast) / cpu.performance_cores))
    return min(cpu.performance_cores, math.ceil(len(usable) / threads_per_core)), usable


def _reachable(facts: Facts, cpus: frozenset[int] | None) -> int:
    """Cores that this process may be put on, before its CPU quota cuts the time on them; 0 where unknown.

    Only a quota makes them differ from the usable ones: neighbours may fill other cores of the host
    without taking any of the quota away.
    """
    cpu = facts.cpu
    if cpu is None or facts.cgroup is None or facts.cgroup.cpu_quota is None:
        return 0
    if cpus is not None:
        return math.ceil(len(cpus) / (cpu.threads_per_core or 1))
    return cpu.online_physical_cores or cpu.physical_cores or 0


def _busy_now(facts: Facts, cores: _Cores) -> int | None:
    """Cores that others keep busy at the moment, rounded; None where nothing was sampled."""
    load = facts.load
    if load is None:
        return None
    shares, logical = load.busy_per_cpu, facts.cpu.logical_cores if facts.cpu else None
    if shares and cores.cpus and len(shares) == logical and max(cores.cpus) < len(shares):
        return _rounded(sum(shares[cpu] for cpu in cores.cpus))
    if load.busy_cores_now is not None:
        return _rounded(load.busy_cores_now)
    return _rounded(sum(shares)) if shares else None


def _busy_past(facts: Facts) -> int | None:
    """Cores' worth of work that waited to run over the last 15 minutes, rounded; None where unknown."""
    past = facts.load.load_15m if facts.load else None
    return None if past is None else _rounded(past)


def _rounded(busy: float) -> int:
    return 0 if busy < _BUSY_CORES else max(1, math.floor(busy + 0.5))


def _reason(cores: _Cores, choice: int, now: int | None, past: int | None) -> str:
    if now:
        when = {None: "now", 0: "now, though not over the last 15 minutes"}.get(
            past, "now and over the last 15 minutes"
        )
        return f"others keep {now} of {cores.reachable} cores busy {when}{_price(cores.allowed, choice)}"
    kind = "performance core" if cores.performance_only else "usable physical core"
    each = f"one thread for each of {cores.allowed} {kind}s" if cores.allowed > 1 else f"there is one {kind}"
    if now is None and past is None:
        return f"{each}; how busy others are is unknown"
    sample = "nothing was sampled now" if now is None else "others are quiet now"
    return f"{each}; {sample}" + (", but the last 15 minutes were busy" if past else "")


def _price(allowed: int, choice: int) -> str:
    """What the choice gives up; as a share of threads, because speed follows the machine's memory, not their number."""
    lost = allowed - choice
    if lost <= 0:
        return ""
    share = f"{lost} of {allowed} threads ({100 * lost / allowed:.0f}%)"
    return f"; gives up {share}, which are missing once the machine is idle: optimize again then"


rule = Rule("match-threads", ("threads",), decide, title="One thread for each free physical core")
