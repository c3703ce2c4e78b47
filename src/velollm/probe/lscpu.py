"""Output of `lscpu`, for machines of which nothing else is known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velollm.probe.texts import parse_float, parse_int, parse_pairs
from velollm.units import parse_cpu_list


@dataclass(frozen=True)
class Lscpu:
    """Lines about the machine, and one block of lines for each kind of core (big and little chips have several)."""

    machine: Mapping[str, str]
    kinds: tuple[Mapping[str, str], ...]

    def get(self, name: str) -> str | None:
        """A line about the machine or, failing that, about its first kind of core; ``-`` is no value."""
        value = self.machine.get(name) or (self.kinds[0].get(name) if self.kinds else None)
        return value if value not in ("", "-") else None


def parse_lscpu(text: str) -> Lscpu | None:
    """The lines of `lscpu` (also of `lscpu -J`); None where the text is something else."""
    machine: dict[str, str] = {}
    kinds: list[dict[str, str]] = []
    for name, value in parse_pairs(_from_json(text) or text):
        if name == "Model name":
            kinds.append({})
        # Blocks begin at "Model name"; what comes before the first is about the machine.
        (kinds[-1] if kinds else machine)[name] = value
    if "CPU(s)" not in machine and not any("CPU(s)" in kind for kind in kinds):
        return None
    return Lscpu(machine, tuple(kinds))


def online_cpus(report: Lscpu) -> frozenset[int] | None:
    """CPUs that are online."""
    text = report.get("On-line CPU(s) list")
    return parse_cpu_list(text) if text else None


def offline_cpus(report: Lscpu) -> frozenset[int]:
    """CPUs that are present but offline."""
    return parse_cpu_list(report.get("Off-line CPU(s) list") or "") or frozenset()


def threads_per_core(report: Lscpu) -> int | None:
    """Hardware threads of one core (the most, where kinds differ)."""
    counts = [parse_int(kind.get("Thread(s) per core")) for kind in _kinds(report)]
    known = [count for count in counts if count]
    return max(known, default=None)


def online_cores(report: Lscpu) -> int | None:
    """Physical cores that are online: the sum over the kinds of cores."""
    total = 0
    for kind in _kinds(report):
        per, times = kind.get("Core(s) per socket"), kind.get("Socket(s)")
        if parse_int(per) is None or parse_int(times) is None:
            per, times = kind.get("Core(s) per cluster"), kind.get("Cluster(s)")
        cores, groups = parse_int(per), parse_int(times)
        if not cores or not groups or cores < 0 or groups < 0:
            return None
        total += cores * groups
    count = parse_int(report.get("CPU(s)"))
    return total if total and (count is None or total <= count) else None


def socket_count(report: Lscpu) -> int | None:
    """Sockets. Blocks for several kinds of core describe clusters of one chip, so they are one socket."""
    if len(report.kinds) > 1:
        return 1
    return parse_int(report.get("Socket(s)"))


def node_count(report: Lscpu) -> int | None:
    """NUMA nodes that have CPUs."""
    lines = {**report.machine, **{name: value for kind in report.kinds for name, value in kind.items()}}
    nodes = [value for name, value in lines.items() if re.fullmatch(r"NUMA node\d+ CPU\(s\)", name)]
    with_cpus = [value for value in nodes if value]
    return len(with_cpus) or parse_int(lines.get("NUMA node(s)"))


def model_names(report: Lscpu) -> tuple[str, ...]:
    """Names of the kinds of core, the fastest first."""

    def fastest_first(kind: Mapping[str, str]) -> float:
        return -(parse_float(kind.get("CPU max MHz")) or 0.0)

    names = (kind["Model name"] for kind in sorted(report.kinds, key=fastest_first))
    return tuple(dict.fromkeys(name for name in names if name and name != "-"))


def kinds_differ(report: Lscpu) -> bool | None:
    """True where blocks with different names or clocks show several kinds of core; None where nothing tells."""
    if len(report.kinds) < 2:
        return False if report.kinds else None
    return len({(kind.get("Model name"), kind.get("CPU max MHz")) for kind in report.kinds}) > 1


def fast_and_slow_cores(report: Lscpu) -> tuple[int, int] | None:
    """Cores of the fast kinds and of the slowest kind, by their highest clock; None where clocks are missing."""
    counted: list[tuple[float, int]] = []
    for kind in report.kinds:
        clock = parse_float(kind.get("CPU max MHz"))
        cores = online_cores(Lscpu({}, (kind,)))
        if clock is None or cores is None:
            return None
        counted.append((clock, cores))
    slowest = min((clock for clock, _ in counted), default=0.0)
    slow = sum(cores for clock, cores in counted if clock == slowest)
    fast = sum(cores for clock, cores in counted if clock > slowest)
    return (fast, slow) if fast else None


def _kinds(report: Lscpu) -> tuple[Mapping[str, str], ...]:
    if len(report.kinds) > 1:
        return report.kinds
    return ({**report.machine, **(report.kinds[0] if report.kinds else {})},)


def _from_json(text: str) -> str | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    lines: list[str] = []
    stack: list[Any] = [document.get("lscpu")]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, dict):
            lines.append(f"{str(item.get('field', '')).rstrip(':')}: {item.get('data') or ''}")
            stack.append(item.get("children") or [])
    return "\n".join(lines)
