"""Other programs that keep cores busy."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, Severity, evidence
from velollm.facts import Facts, LoadFacts

_NAME = "busy-neighbours"
_WHY = "the engine's threads wait for each other, so one that has to share its core holds up all of them"
_FIX = "end the busy program (`top -o %CPU` shows it), or let `velollm optimize` choose fewer threads"

# Half a core is where the thread rule counts a neighbour; one that just started must take nearly a whole one.
_BUSY_CORES = 0.5
_SURELY_BUSY_CORES = 0.8
_BUSY_SHARE_OF_MACHINE = 0.1


def run(facts: Facts) -> Iterator[Finding]:
    """Finds cores that others keep busy: as sampled now, and over the last 15 minutes.

    A neighbour on one of two cores took decode from 52 to 0.9 tokens/s, because every thread of
    the engine waits for the one that has to share. Busy now is a warning; half a core that was
    quiet before, or a load that is already over, is only a note. An engine with OpenMP spins while it
    waits, which OMP_WAIT_POLICY=passive ends: 27 tokens/s instead of 0.7, though 28 instead of 43 on an
    idle machine.
    """
    load = facts.load
    if load is None:
        return
    if _busy_now(load):
        yield _now(facts, load)
    elif load.load_15m is not None and load.load_15m >= _much(facts):
        yield Finding(
            _NAME,
            "note",
            f"the last 15 minutes were busy: {load.load_15m:.1f} tasks on average wanted a core",
            (evidence(facts, "load.load_15m", f"{load.load_15m:.2f}"), _sampled(facts, load)),
            _FIX,
            _WHY,
        )


def _busy_now(load: LoadFacts) -> bool:
    busiest = max(load.busy_per_cpu) if load.busy_per_cpu else None
    return (load.busy_cores_now or 0) >= _BUSY_CORES and (busiest is None or busiest >= _BUSY_CORES)


def _now(facts: Facts, load: LoadFacts) -> Finding:
    busy = load.busy_cores_now or 0.0
    brief = load.load_15m is not None and load.load_15m < _BUSY_CORES
    severity: Severity = "note" if brief and busy < _SURELY_BUSY_CORES else "warning"
    seen = [_sampled(facts, load)]
    if load.load_15m is not None:
        seen.append(evidence(facts, "load.load_15m", f"{load.load_15m:.2f}"))
    when = "now, though not over the last 15 minutes" if brief else "now"
    fix = _FIX
    engine = facts.server.activity.engine if facts.server and facts.server.activity else None
    if engine is not None and engine.openmp:
        seen.append(evidence(facts, "server.activity", "system_info: OPENMP = 1"))
        fix += "; or give the server OMP_WAIT_POLICY=passive"
    return Finding(_NAME, severity, f"others keep {busy:.1f} cores busy {when}", tuple(seen), fix, _WHY)


def _much(facts: Facts) -> float:
    logical = facts.cpu.logical_cores if facts.cpu else None
    return max(_BUSY_CORES, _BUSY_SHARE_OF_MACHINE * (logical or 0))


def _sampled(facts: Facts, load: LoadFacts) -> Evidence:
    shown = "not sampled" if load.busy_cores_now is None else f"{load.busy_cores_now:.2f} cores"
    return evidence(facts, "load.busy_cores_now", shown)


check = Check(_NAME, "Programs that keep cores busy", "warning", False, run)
