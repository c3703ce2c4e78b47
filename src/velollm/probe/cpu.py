"""Processor of a Linux machine: what it is, how its threads form cores, and what this process may use of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from velollm.probe import arm, lscpu
from velollm.probe.cgroup import CgroupReading
from velollm.probe.cpuinfo import (
    CpuInfo,
    core_keys,
    core_names,
    info_architecture,
    info_core_count,
    info_flags,
    is_mixed_model,
    parse_cpuinfo,
    parse_isa,
)
from velollm.probe.cputree import CPU_DIR, CpuTree, package_count, read_cpu_tree, sibling_keys
from velollm.probe.fields import Fields
from velollm.probe.hybrid import Split, split_cores
from velollm.probe.lscpu import Lscpu, parse_lscpu
from velollm.probe.memory import read_nodes_with_cpus
from velollm.probe.source import Source
from velollm.probe.system import read_board
from velollm.probe.texts import parse_int, read_value
from velollm.probe.uname import read_architecture
from velollm.units import parse_cpu_list, render_cpu_list

_CPUINFO = "/proc/cpuinfo"
_COMPATIBLE = "/proc/device-tree/compatible"
_STATUS = "/proc/self/status"


@dataclass(frozen=True)
class Machine:
    """All that was read of the processor: three descriptions, the CPU numbers, and a key of each CPU's core."""

    info: CpuInfo
    tree: CpuTree
    report: Lscpu | None
    present: frozenset[int]
    online: frozenset[int]
    keys: Mapping[int, Hashable] | None
    keys_place: str

    def online_keys(self) -> Mapping[int, Hashable] | None:
        """The core keys where every CPU that is online has one."""
        return self.keys if self.keys is not None and self.online <= self.keys.keys() else None


def read_linux_cpu(source: Source, cgroup: CgroupReading | None, fields: Fields) -> None:
    """Put all that `/proc/cpuinfo`, `/sys/devices/system`, `lscpu` and `nproc` tell of the processor."""
    machine = _read_machine(source)
    processors = parse_int(source.run(["nproc"])) if not source.live else None
    if machine.present:
        _put_counts(machine, fields)
        split = split_cores(source, machine.info, machine.tree, machine.online, machine.keys)
        _put_split(machine, split, fields)
        _put_names(source, machine, split, fields)
        _put_platform(source, machine, fields)
    if machine.report is not None:
        _put_report(machine.report, fields)
    fields.put("logical_cores", processors, "nproc")
    if fields:
        _put_usable(source, machine, cgroup, processors, fields)


def _read_machine(source: Source) -> Machine:
    info = parse_cpuinfo(source.read(_CPUINFO) or "")
    tree = read_cpu_tree(source)
    report = parse_lscpu(source.run(["lscpu"]) or "") if not source.live else None
    # A container may be shown a part of one list, a capture may hold a part of one tree: each CPU that
    # any of them names is there.
    listed = frozenset(info.processors)
    online = listed | (tree.online or frozenset())
    present = online | (tree.present or frozenset())
    if report is not None and not online:
        online = lscpu.online_cpus(report) or frozenset()
        present = online | lscpu.offline_cpus(report)
    keys: Mapping[int, Hashable] | None = sibling_keys(tree, online)
    place = f"{CPU_DIR}/cpu*/topology/thread_siblings_list"
    if keys is None and listed == online:
        keys, place = core_keys(info), _CPUINFO
    return Machine(info, tree, report, present, online, keys, place)


def _put_counts(machine: Machine, fields: Fields) -> None:
    where = f"{CPU_DIR}/online" if machine.tree.online else _CPUINFO if machine.info.processors else "lscpu"
    fields.put("logical_cores", len(machine.present), where)
    fields.put("online_cores", len(machine.online), where)
    keys = machine.online_keys()
    cores = len({keys[cpu] for cpu in machine.online}) if keys is not None else None
    fields.put("online_physical_cores", cores, machine.keys_place)
    if machine.info.processors.keys() == machine.online:
        fields.put("online_physical_cores", info_core_count(machine.info), _CPUINFO)
    if machine.report is not None:
        fields.put("online_physical_cores", lscpu.online_cores(machine.report), "lscpu")
    width = _width(machine)
    fields.put("threads_per_core", width, machine.keys_place if keys is not None else "lscpu")
    total = _all_cores(machine, fields.get("online_physical_cores"), width)
    fields.put("physical_cores", total, fields.place("online_physical_cores"))


def _width(machine: Machine) -> int | None:
    """Hardware threads of one core: the most that any core has."""
    keys = machine.online_keys()
    if keys:
        counts: dict[Hashable, int] = {}
        for cpu in machine.online:
            counts[keys[cpu]] = counts.get(keys[cpu], 0) + 1
        return max(counts.values())
    return lscpu.threads_per_core(machine.report) if machine.report is not None else None


def _all_cores(machine: Machine, online_cores: int | None, width: int | None) -> int | None:
    """Cores that are there, offline ones included; None where it is unknown whether those are cores or threads."""
    offline = machine.present - machine.online
    if not offline or online_cores is None:
        return online_cores
    if machine.tree.smt_control in ("off", "forceoff"):
        # What was switched off are the second threads of cores that run.
        return online_cores
    one_thread = machine.info.first("cpu implementer") or _is_arm(machine)
    if width is None or (width == 1 and not one_thread) or len(machine.present) % width:
        return None
    return len(machine.present) // width


def _is_arm(machine: Machine) -> bool:
    return machine.report is not None and (machine.report.get("Architecture") or "").startswith(("aarch64", "arm"))


def _put_split(machine: Machine, split: Split | None, fields: Fields) -> None:
    if split is None:
        return
    fields.put("performance_cpus", render_cpu_list(split.fast), split.place)
    fields.put("efficiency_cpus", render_cpu_list(split.slow), split.place)
    cores = fields.get("physical_cores")
    if not split.slow:
        # Offline CPUs of an Arm chip may be of another kind than those that are online.
        same = machine.present == machine.online or not machine.info.first("cpu implementer")
        fields.put("performance_cores", cores if same else None, split.place)
        fields.put("efficiency_cores", 0 if cores is not None and same else None, split.place)
        return
    keys = machine.online_keys()
    if keys is not None and machine.present == machine.online:
        fields.put("performance_cores", len({keys[cpu] for cpu in split.fast}), split.place)
        fields.put("efficiency_cores", len({keys[cpu] for cpu in split.slow}), split.place)


def _put_names(source: Source, machine: Machine, split: Split | None, fields: Fields) -> None:
    fields.put("model_name", arm.apple_chip(source.read(_COMPATIBLE)), _COMPATIBLE)
    names = core_names(machine.info)
    if names:
        chips = {arm.apple_chip_of_core(name) for name in names.values()}
        fields.put("model_name", chips.pop() if len(chips) == 1 else None, _CPUINFO)
        fast_first = sorted(
            machine.online & names.keys(), key=lambda cpu: (split is not None and cpu in split.slow, cpu)
        )
        known = [names[cpu] for cpu in fast_first]
        if None not in known:
            fields.put("model_name", _one_or_all(name for name in known if name), _CPUINFO)
        return
    for line in ("model name", "cpu", "uarch"):
        fields.put("model_name", _one_or_all(machine.info.values(line)), _CPUINFO)


def _one_or_all(names: Iterable[str]) -> str | tuple[str, ...] | None:
    different = tuple(dict.fromkeys(names))
    return (different[0] if len(different) == 1 else different) if different else None


def _put_platform(source: Source, machine: Machine, fields: Fields) -> None:
    fields.put("architecture", *read_architecture(source))
    fields.put("architecture", info_architecture(machine.info), _CPUINFO)
    if source.read(_COMPATIBLE) is not None and (machine.info.first("cpu implementer") or _is_arm(machine)):
        # Arm boards with a device tree are built around one chip; older kernels number its clusters as packages.
        fields.put("sockets", 1, _COMPATIBLE)
    fields.put("sockets", package_count(machine.tree), f"{CPU_DIR}/cpu*/topology/physical_package_id")
    fields.put("sockets", len(machine.info.values("physical id")) or None, _CPUINFO)
    nodes = read_nodes_with_cpus(source)
    fields.put("numa_nodes", len(nodes) if nodes else None, "/sys/devices/system/node")
    fields.put("isa", parse_isa(info_flags(machine.info)), _CPUINFO)
    governors = {machine.tree.threads[cpu].governor for cpu in machine.online & machine.tree.threads.keys()} - {None}
    if governors:
        fields.put("governor", ",".join(sorted(map(str, governors))), f"{CPU_DIR}/cpu*/cpufreq/scaling_governor")
    driver = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
    fields.put("governor_driver", read_value(source, driver), driver)
    preference = "/sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference"
    fields.put("energy_preference", read_value(source, preference), preference)
    fields.put("board", machine.info.machine.get("model") or machine.info.machine.get("machine"), _CPUINFO)
    board = read_board(source)
    if board is not None:
        fields.put("board", *board)


def _put_report(report: Lscpu, fields: Fields) -> None:
    fields.put("architecture", report.get("Architecture"), "lscpu")
    fields.put("model_name", _one_or_all(lscpu.model_names(report)), "lscpu")
    fields.put("sockets", lscpu.socket_count(report), "lscpu")
    fields.put("numa_nodes", lscpu.node_count(report), "lscpu")
    fields.put("isa", parse_isa(report.get("Flags")), "lscpu")
    online, logical = fields.get("online_physical_cores"), fields.get("logical_cores")
    if "performance_cores" in fields.values or lscpu.offline_cpus(report) or online is None:
        return
    pair = lscpu.fast_and_slow_cores(report) if lscpu.kinds_differ(report) else None
    if pair is not None:
        fields.put("performance_cores", pair[0], "lscpu")
        fields.put("efficiency_cores", pair[1], "lscpu")
    elif not lscpu.kinds_differ(report):
        width = lscpu.threads_per_core(report)
        mixed = is_mixed_model(report.get("Vendor ID"), report.get("CPU family"), report.get("Model"))
        # Intel's efficiency cores run one thread each: two on every core means that none is one.
        proven = not mixed or (report.get("Vendor ID") == "GenuineIntel" and width == 2 and logical == 2 * online)
        if proven and width is not None and logical == width * online:
            fields.put("performance_cores", online, "lscpu")
            fields.put("efficiency_cores", 0, "lscpu")


def _put_usable(
    source: Source, machine: Machine, cgroup: CgroupReading | None, processors: int | None, fields: Fields
) -> None:
    """Online CPUs inside the cpuset and the affinity mask, cut by the whole part of the quota, at least 1."""
    affinity = _read_affinity(source)
    cpuset = parse_cpu_list(str(cgroup.fields.get("cpuset") or "")) if cgroup is not None else None
    if affinity:
        fields.put("affinity", render_cpu_list(affinity), _STATUS)
    usable, place = machine.online, fields.place("logical_cores")
    for allowed, where in ((cpuset, cgroup.fields.place("cpuset") if cgroup is not None else ""), (affinity, _STATUS)):
        if allowed and usable & allowed and not usable <= allowed:
            usable, place = usable & allowed, where
    count = len(usable) or fields.get("online_cores") or fields.get("logical_cores")
    if count is None:
        return
    if processors is not None and 0 < processors < count:
        count, place = processors, "nproc"
    keys = machine.keys
    cores = len({keys[cpu] for cpu in usable}) if keys is not None and usable and usable <= keys.keys() else None
    if cores is None and count == fields.get("online_cores"):
        cores = fields.get("online_physical_cores")
    quota = cgroup.fields.get("cpu_quota") if cgroup is not None else None
    if quota is not None and cgroup is not None and max(1, math.floor(quota)) < count:
        count, place = max(1, math.floor(quota)), cgroup.fields.place("cpu_quota")
    fields.put("usable_cores", count, place)
    # One thread needs one core, whatever else is unknown.
    cores = min(cores, count) if cores is not None else 1 if count == 1 else None
    fields.put("usable_physical_cores", cores, place)


def _read_affinity(source: Source) -> frozenset[int] | None:
    for line in (source.read(_STATUS) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse_cpu_list(value)
    return None
