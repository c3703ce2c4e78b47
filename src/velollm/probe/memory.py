"""Main memory: what there is, what is free, and what this process may have."""

from __future__ import annotations

import re

from velollm.probe.cgroup import CgroupReading
from velollm.probe.fields import Fields
from velollm.probe.source import Source
from velollm.probe.texts import parse_cpu_mask, parse_int, read_value
from velollm.units import GIB, KIB, parse_bytes, parse_cpu_list

_NODE_DIR = "/sys/devices/system/node"
_MEMINFO = "/proc/meminfo"


def read_linux_memory(source: Source, cgroup: CgroupReading | None, fields: Fields) -> None:
    """Put what `/proc/meminfo`, the NUMA nodes, the control group and `free` tell."""
    total = _put_meminfo(source, fields)
    _put_nodes(source, cgroup, fields, total)
    _put_free(source, fields)
    if cgroup is not None and cgroup.memory is not None:
        fields.put("limit_bytes", cgroup.memory.limit_bytes, cgroup.memory.place)
        fields.put("limit_used_bytes", cgroup.memory.used_bytes, cgroup.memory.place)


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of `/proc/meminfo` or of a NUMA node's `meminfo` (lines ``Node 0 MemTotal: 5 kB``)."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = re.match(r"(?:Node \d{1,6} )?([A-Za-z_()0-9]{1,64}):\s{0,32}(\d{1,18}) kB", line)
        if match is not None:
            found[match.group(1)] = int(match.group(2)) * KIB
    return found


def _put_meminfo(source: Source, fields: Fields) -> int | None:
    values = parse_meminfo(source.read(_MEMINFO) or "")
    fields.put("proc_meminfo_total_bytes", values.get("MemTotal"), _MEMINFO)
    fields.put("swap_total_bytes", values.get("SwapTotal"), _MEMINFO)
    fields.put("swap_free_bytes", values.get("SwapFree"), _MEMINFO)
    return values.get("MemTotal")


def _put_nodes(source: Source, cgroup: CgroupReading | None, fields: Fields, meminfo_total: int | None) -> None:
    """Total, available and allowed memory.

    A GPU whose memory is coherent with the CPU's (POWER9 with V100, Grace Hopper) shows it as a NUMA node
    without CPUs, and `/proc/meminfo` counts it in: where such nodes are, only nodes with CPUs are host memory.
    """
    nodes = {node: values for node, values in read_node_memory(source).items() if values.get("MemTotal")}
    with_cpus = read_nodes_with_cpus(source) or frozenset()
    available = parse_meminfo(source.read(_MEMINFO) or "").get("MemAvailable")
    foreign = [values for node, values in nodes.items() if node not in with_cpus]
    if foreign and with_cpus and meminfo_total is not None:
        place = f"{_MEMINFO} less {_NODE_DIR}/node*/meminfo"
        fields.put("total_bytes", max(0, meminfo_total - sum(values["MemTotal"] for values in foreign)), place)
        if available is not None:
            taken = sum(values.get("MemFree", 0) for values in foreign)
            fields.put("available_bytes", max(0, available - taken), place)
    fields.put("total_bytes", meminfo_total, _MEMINFO)
    fields.put("available_bytes", available, _MEMINFO)
    mems = parse_cpu_list(str(cgroup.fields.get("mems") or "")) if cgroup is not None else None
    # Only a part of the nodes is a restriction, and hot-plugged memory can be missing in a node's own file.
    if cgroup is not None and mems and mems < nodes.keys():
        fields.put("allowed_bytes", sum(nodes[node]["MemTotal"] for node in mems), cgroup.fields.place("mems"))


def read_node_memory(source: Source) -> dict[int, dict[str, int]]:
    """Bytes by name for each NUMA node."""
    nodes: dict[int, dict[str, int]] = {}
    for path in source.glob(f"{_NODE_DIR}/node[0-9]*/meminfo"):
        match = re.search(r"/node(\d{1,6})/", path)
        if match is not None:
            nodes[int(match.group(1))] = parse_meminfo(source.read(path) or "")
    return nodes


def read_nodes_with_cpus(source: Source) -> frozenset[int] | None:
    """NUMA nodes that have CPUs; None where the machine does not tell."""
    listed = read_value(source, f"{_NODE_DIR}/has_cpu")
    nodes = parse_cpu_list(listed) if listed is not None else None
    if nodes:
        return nodes
    found: set[int] = set()
    for name, parse in (("cpulist", parse_cpu_list), ("cpumap", parse_cpu_mask)):
        for path in source.glob(f"{_NODE_DIR}/node[0-9]*/{name}"):
            match = re.search(r"/node(\d{1,6})/", path)
            if match is not None and parse(source.read(path) or ""):
                found.add(int(match.group(1)))
    return frozenset(found) or None


def _put_free(source: Source, fields: Fields) -> None:
    """`free`: exact in its plain and `-b` forms; `-h`, `-m` and `-g` are rounded, so they only give an estimate."""
    for options, unit in (("-b", 1), ("", KIB), ("-k", KIB)):
        text = source.run(["free", options] if options else ["free"]) if not source.live else None
        row = _free_row(text or "", "Mem:")
        if row is not None and (count := parse_int(row[0])) is not None:
            fields.put("total_bytes", count * unit, f"free {options}".strip())
            fields.put("available_bytes", _scaled(row, unit), f"free {options}".strip())
    for options, suffix in (("-h", ""), ("-m", "M"), ("-g", "G")):
        text = source.run(["free", options]) if not source.live else None
        row = _free_row(text or "", "Mem:")
        count = parse_bytes(re.sub(r"i$", "", row[0]) + suffix) if row is not None else None
        if count is not None:
            fields.put("approx_gib", round(count / GIB, 2), f"free {options}")


def _scaled(row: list[str], unit: int) -> int | None:
    value = parse_int(row[5]) if len(row) > 5 else None
    return value * unit if value is not None else None


def _free_row(text: str, name: str) -> list[str] | None:
    rows = (line.split() for line in text.splitlines() if line.lstrip().startswith(name))
    return next((row[1:] for row in rows if len(row) > 1), None)
