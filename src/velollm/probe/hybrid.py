"""Which cores are the performance cores and which the efficiency cores of a chip that mixes them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from velollm.probe import arm
from velollm.probe.cpuinfo import CpuInfo, core_names, may_mix_cores, part_numbers
from velollm.probe.cputree import CPU_DIR, CpuTree
from velollm.probe.source import Source
from velollm.probe.texts import captured_command, parse_int
from velollm.units import parse_cpu_list

# Cores of one kind are binned: favoured ones clock up to 6 % higher (an i9-14900KS has 6.2 and 5.9
# GHz). Kinds lie further apart (an i7-1370P has 5.0 and 3.9). A step of 15 % is between the two.
_STEP = 1.15


@dataclass(frozen=True)
class Split:
    """Threads of the fast and of the slow cores, and what told them apart."""

    fast: frozenset[int]
    slow: frozenset[int]
    place: str


def split_cores(
    source: Source, info: CpuInfo, tree: CpuTree, online: frozenset[int], keys: Mapping[int, Hashable] | None
) -> Split | None:
    """The fast and the slow threads among those online; all are fast where all are of one kind.

    None where the machine may mix kinds and nothing tells which is which.
    """
    if not online:
        return None
    split = _by_kernel_lists(source, online)
    if split is not None:
        return split
    if part_numbers(info):
        return _arm_split(source, info, tree, online)
    return _x86_split(info, tree, online, keys)


def _by_kernel_lists(source: Source, online: frozenset[int]) -> Split | None:
    """Intel's own lists: the kernel has one performance-counter unit for each kind of core."""

    def read(name: str) -> frozenset[int]:
        return parse_cpu_list(source.read(f"/sys/devices/{name}/cpus") or "") or frozenset()

    fast, slow = read("cpu_core") & online, (read("cpu_atom") | read("cpu_lowpower")) & online
    if not fast or fast | slow != online:
        return None
    return Split(fast, slow - fast, "/sys/devices/cpu_core/cpus")


def _arm_split(source: Source, info: CpuInfo, tree: CpuTree, online: frozenset[int]) -> Split | None:
    parts = part_numbers(info)
    if not online <= parts.keys():
        return None
    # One part number is one kind of core, whatever the clusters' clocks are.
    if len({parts[cpu] for cpu in online}) == 1:
        return Split(online, frozenset(), "/proc/cpuinfo")
    names = core_names(info)
    clocks = parse_topology_table(captured_command(source, "sbc-bench", "cpu", "topology") or "")
    return (
        _by_steps(online, lambda cpu: _thread(tree, cpu, "capacity"), f"{CPU_DIR}/cpu*/cpu_capacity")
        or _by_steps(online, lambda cpu: _thread(tree, cpu, "max_khz"), f"{CPU_DIR}/cpu*/cpufreq/cpuinfo_max_freq")
        or _by_steps(online, clocks.get, "sbc-bench")
        or _by_class(online, lambda cpu: arm.speed_class(names.get(cpu)))
    )


def _x86_split(
    info: CpuInfo, tree: CpuTree, online: frozenset[int], keys: Mapping[int, Hashable] | None
) -> Split | None:
    widths = _widths(online, keys)
    if info.first("vendor_id") in ("GenuineIntel", None):
        # Intel's efficiency cores share one L2 cache among several cores and run one thread each.
        shared = {cpu for cpu in online if (t := tree.threads.get(cpu)) and t.l2 and t.siblings and t.l2 - t.siblings}
        if shared and shared != online:
            return Split(online - shared, frozenset(shared), f"{CPU_DIR}/cpu*/cache/index2/shared_cpu_list")
        single = frozenset(cpu for cpu, width in widths.items() if width == 1)
        if single and single != online and may_mix_cores(info):
            return Split(online - single, single, f"{CPU_DIR}/cpu*/topology/thread_siblings_list")
    split = _by_steps(
        online, lambda cpu: _thread(tree, cpu, "max_khz"), f"{CPU_DIR}/cpu*/cpufreq/cpuinfo_max_freq"
    ) or _by_steps(online, lambda cpu: _thread(tree, cpu, "highest_perf"), f"{CPU_DIR}/cpu*/acpi_cppc/highest_perf")
    if split is not None:
        return split
    if not info.processors or not may_mix_cores(info):
        return Split(online, frozenset(), "/proc/cpuinfo") if info.processors else None
    told = all(_thread(tree, cpu, "max_khz") for cpu in online)
    intel_smt = info.first("vendor_id") == "GenuineIntel" and set(widths.values()) == {2}
    return Split(online, frozenset(), CPU_DIR) if told or intel_smt else None


def _widths(online: frozenset[int], keys: Mapping[int, Hashable] | None) -> dict[int, int]:
    if keys is None or not online <= keys.keys():
        return {}
    counts: dict[Hashable, int] = {}
    for cpu in online:
        counts[keys[cpu]] = counts.get(keys[cpu], 0) + 1
    return {cpu: counts[keys[cpu]] for cpu in online}


def _thread(tree: CpuTree, cpu: int, name: str) -> int | None:
    thread = tree.threads.get(cpu)
    value = getattr(thread, name) if thread is not None else None
    return value if isinstance(value, int) and value > 0 else None


def _by_steps(online: frozenset[int], value_of: Callable[[int], float | None], place: str) -> Split | None:
    """Split below the lowest wide step between neighbouring values: the lowest group is the slow one."""
    values = {cpu: value for cpu in online if (value := value_of(cpu)) is not None and value > 0}
    if len(values) != len(online):
        return None
    ordered = sorted(set(values.values()))
    for below, above in itertools.pairwise(ordered):
        if above / below >= _STEP:
            slow = frozenset(cpu for cpu, value in values.items() if value <= below)
            return Split(online - slow, slow, place)
    return None


def _by_class(online: frozenset[int], class_of: Callable[[int], int | None]) -> Split | None:
    classes = {cpu: rank for cpu in online if (rank := class_of(cpu)) is not None}
    if len(classes) != len(online):
        return None
    lowest = min(classes.values())
    slow = frozenset(cpu for cpu, rank in classes.items() if rank == lowest)
    if slow == online:
        slow = frozenset()
    return Split(online - slow, slow, "/proc/cpuinfo")


def parse_topology_table(text: str) -> dict[int, float]:
    """Highest clock in MHz of each CPU, of sbc-bench's table (CPU, cluster, policy, lowest, highest, kind)."""
    rows = (re.match(r"\s{0,8}(\d{1,6})\s+\S+\s+\S+\s+\d{1,9}\s+(\d{1,9})\s+\S", line) for line in text.splitlines())
    clocks = {int(row.group(1)): parse_int(row.group(2)) for row in rows if row is not None}
    return {cpu: float(clock) for cpu, clock in clocks.items() if clock}
