"""CPUs as `/sys/devices/system/cpu` describes them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from velollm.probe.source import Source
from velollm.probe.texts import parse_cpu_mask, parse_int, read_value
from velollm.units import parse_cpu_list

CPU_DIR = "/sys/devices/system/cpu"
_NUMBER = re.compile(r"/cpu(\d{1,6})(?:/|$)")


@dataclass(frozen=True)
class Thread:
    """One hardware thread. ``siblings``: the threads of its core; ``l2``: those that share its L2 cache."""

    siblings: frozenset[int] | None = None
    package: int | None = None
    capacity: int | None = None
    max_khz: int | None = None
    highest_perf: int | None = None
    l2: frozenset[int] | None = None
    governor: str | None = None


@dataclass(frozen=True)
class CpuTree:
    """Lists and threads of the tree; a list that is not there is None. Empty where there is no tree."""

    present: frozenset[int] | None = None
    online: frozenset[int] | None = None
    smt_control: str | None = None
    threads: Mapping[int, Thread] = field(default_factory=dict)


def read_cpu_tree(source: Source) -> CpuTree:
    """The tree of this source; an empty one where there is none, or where it contradicts itself.

    It contradicts itself where it isolates CPUs that it does not have: the kernel prints possible
    CPUs only (kernel/sched/isolation.c, drivers/base/cpu.c `print_cpus_isolated`), so such a tree was
    put together by hand and its topology cannot be believed.
    """
    lists = {name: _read_list(source, f"{CPU_DIR}/{name}") for name in ("present", "online", "possible", "isolated")}
    numbers = {
        int(match.group(1))
        for path in source.glob(f"{CPU_DIR}/cpu[0-9]*/topology/*")
        if (match := _NUMBER.search(path)) is not None
    }
    known = frozenset(numbers).union(*(lists[name] or () for name in ("present", "online", "possible")))
    if (lists["isolated"] or frozenset()) - known:
        return CpuTree()
    threads = {number: _read_thread(source, number) for number in sorted(numbers)}
    return CpuTree(lists["present"], lists["online"], read_value(source, f"{CPU_DIR}/smt/control"), threads)


def sibling_keys(tree: CpuTree, cpus: Iterable[int]) -> dict[int, Hashable] | None:
    """A key for each CPU, equal for the threads of one core; None where the tree does not tell.

    Where it tells for some of the CPUs only, the others follow when all that are known lie in runs of
    one same length (POWER: ``0-3``, ``4-7``); no other numbering can be carried over.
    """
    cpus = list(cpus)
    known = {n: t.siblings for n, t in tree.threads.items() if t.siblings}
    if not known:
        return None
    if all(cpu in known for cpu in cpus):
        return {cpu: min(known[cpu]) for cpu in cpus}
    width = len(next(iter(known.values())))
    for siblings in known.values():
        first = min(siblings)
        if first % width or siblings != frozenset(range(first, first + width)):
            return None
    return {cpu: cpu - cpu % width for cpu in cpus}


def package_count(tree: CpuTree) -> int | None:
    """Different packages; their numbers need not begin at 0, and -1 means that the kernel does not know."""
    packages = {t.package for t in tree.threads.values() if t.package is not None and t.package >= 0}
    return len(packages) or None


def _read_list(source: Source, path: str) -> frozenset[int] | None:
    text = source.read(path)
    return parse_cpu_list(text) if text is not None else None


def _read_thread(source: Source, number: int) -> Thread:
    base = f"{CPU_DIR}/cpu{number}"
    return Thread(
        siblings=_read_set(source, f"{base}/topology", ("thread_siblings", "core_cpus")),
        package=parse_int(source.read(f"{base}/topology/physical_package_id")),
        capacity=parse_int(source.read(f"{base}/cpu_capacity")),
        max_khz=parse_int(source.read(f"{base}/cpufreq/cpuinfo_max_freq")),
        highest_perf=parse_int(source.read(f"{base}/acpi_cppc/highest_perf")),
        l2=_read_l2(source, base),
        governor=read_value(source, f"{base}/cpufreq/scaling_governor"),
    )


def _read_set(source: Source, folder: str, names: tuple[str, ...]) -> frozenset[int] | None:
    for name in names:
        cpus = _read_list(source, f"{folder}/{name}_list")
        if cpus is None and (mask := source.read(f"{folder}/{name}")) is not None:
            cpus = parse_cpu_mask(mask)
        if cpus:
            return cpus
    return None


def _read_l2(source: Source, base: str) -> frozenset[int] | None:
    # index0 and index1 are the L1 caches where they are split; the level file tells for sure.
    for index in (2, 1, 3):
        folder = f"{base}/cache/index{index}"
        if parse_int(source.read(f"{folder}/level")) == 2:
            return _read_list(source, f"{folder}/shared_cpu_list")
    return None
