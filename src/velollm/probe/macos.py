"""Processor and memory of a Mac, of `sysctl` and `system_profiler SPHardwareDataType`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from velollm.probe.fields import Fields
from velollm.probe.source import Source
from velollm.probe.texts import parse_int, parse_pairs, read_command
from velollm.units import GIB, MIB

# `hw.cputype`: CPU_TYPE_X86_64 and CPU_TYPE_ARM64 (XNU: osfmk/mach/machine.h).
_CPU_TYPES = {0x01000007: "x86_64", 0x0100000C: "arm64"}
_ISA = (
    ("avx2", "hw.optional.avx2_0"),
    ("avx512", "hw.optional.avx512f"),
    ("neon", "hw.optional.neon"),
    ("dotprod", "hw.optional.arm.FEAT_DotProd"),
    ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    ("bf16", "hw.optional.arm.FEAT_BF16"),
    ("sme", "hw.optional.arm.FEAT_SME"),
)


def read_mac(source: Source, cpu: Fields, memory: Fields) -> bool:
    """Put what this Mac tells; True where it is one whose GPU shares the main memory (Apple silicon)."""
    names = parse_sysctl(_sysctl_text(source) or "")
    _put_sysctl_cpu(names, cpu)
    memory.put("total_bytes", _positive(names, "hw.memsize"), "sysctl hw.memsize")
    _put_swap(names, memory)
    # Without its data type the tool reports every device of the Mac, which takes minutes.
    hardware = source.run(["system_profiler", "SPHardwareDataType", "-json"]) if not names else None
    text = hardware or source.run(["system_profiler", "SPHardwareDataType"]) or ""
    _put_hardware(parse_hardware(text), cpu, memory)
    _put_vm_stat(source, memory)
    return bool(cpu.get("architecture") == "arm64")


def parse_sysctl(text: str) -> dict[str, str]:
    """Values by name, of lines ``hw.ncpu: 8`` (also ``hw.ncpu=8``)."""
    return {name: value for name, value in parse_pairs(text) if re.fullmatch(r"[a-z][\w.\-]{1,100}", name)}


def _sysctl_text(source: Source) -> str | None:
    if source.live:
        return source.run(["sysctl", "hw", "machdep.cpu", "vm.swapusage"]) or source.run(["sysctl", "hw"])
    return read_command(source, "sysctl")


def _positive(names: Mapping[str, str], name: str) -> int | None:
    value = parse_int(names.get(name))
    return value if value is not None and value > 0 else None


def _put_sysctl_cpu(names: Mapping[str, str], cpu: Fields) -> None:
    if "hw.ncpu" not in names and "hw.logicalcpu" not in names:
        return
    cpu.put("model_name", names.get("machdep.cpu.brand_string") or None, "sysctl machdep.cpu.brand_string")
    arm = _positive(names, "hw.optional.arm64") is not None
    architecture = _CPU_TYPES.get(_positive(names, "hw.cputype") or 0) or ("arm64" if arm else None)
    cpu.put("architecture", architecture, "sysctl hw.cputype")
    cpu.put("board", names.get("hw.model") or None, "sysctl hw.model")
    # Macs with Apple silicon have one package; Intel ones say how many they have.
    cpu.put("sockets", _positive(names, "hw.packages"), "sysctl hw.packages")
    cpu.put("sockets", 1 if architecture == "arm64" else None, "sysctl hw.cputype")
    cpu.put("physical_cores", _positive(names, "hw.physicalcpu_max"), "sysctl hw.physicalcpu_max")
    cpu.put("physical_cores", _positive(names, "hw.physicalcpu"), "sysctl hw.physicalcpu")
    for name in ("hw.logicalcpu_max", "hw.ncpu", "hw.logicalcpu"):
        cpu.put("logical_cores", _positive(names, name), f"sysctl {name}")
    cpu.put("online_cores", _positive(names, "hw.activecpu"), "sysctl hw.activecpu")
    cpu.put("online_physical_cores", _positive(names, "hw.physicalcpu"), "sysctl hw.physicalcpu")
    _put_levels(names, cpu)
    isa = tuple(short for short, name in _ISA if _positive(names, name))
    cpu.put("isa", isa or None, "sysctl hw.optional")


def _put_levels(names: Mapping[str, str], cpu: Fields) -> None:
    """Level 0 is the fastest kind of core; a Mac without levels has one kind."""
    levels: list[int] = []
    while len(levels) < 8 and (cores := _positive(names, f"hw.perflevel{len(levels)}.physicalcpu_max")):
        levels.append(cores)
    if len(levels) > 1:
        cpu.put("performance_cores", sum(levels[:-1]), "sysctl hw.perflevel0")
        cpu.put("efficiency_cores", levels[-1], f"sysctl hw.perflevel{len(levels) - 1}")
    elif levels or cpu.get("architecture") == "x86_64":
        cpu.put("performance_cores", cpu.get("physical_cores"), "sysctl hw.physicalcpu_max")
        cpu.put("efficiency_cores", 0 if cpu.get("physical_cores") else None, "sysctl hw.physicalcpu_max")


def _put_swap(names: Mapping[str, str], memory: Fields) -> None:
    """``vm.swapusage`` reads ``total = 2048.00M  used = 1.00M  free = 2047.00M``; ``M`` is MiB."""
    amounts = dict(re.findall(r"(total|free) = (\d{1,9})(?:\.\d{1,4})?M", names.get("vm.swapusage", "")))
    for name, key in (("swap_total_bytes", "total"), ("swap_free_bytes", "free")):
        memory.put(name, int(amounts[key]) * MIB if key in amounts else None, "sysctl vm.swapusage")


def parse_hardware(text: str) -> dict[str, str]:
    """Values by the names of the plain report (``Chip``, ``Memory``), of that report or of its JSON form."""
    if not text.lstrip().startswith("{"):
        return dict(parse_pairs(text))
    try:
        document: Any = json.loads(text)
        entry = document["SPHardwareDataType"][0]
        pairs = {
            "Chip": entry.get("chip_type") or entry.get("cpu_type"),
            "Memory": entry.get("physical_memory"),
            "Model Identifier": entry.get("machine_model"),
            "Number of Processors": entry.get("packages"),
            "Total Number of Cores": _json_cores(entry.get("number_processors")),
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: str(value) for name, value in pairs.items() if value}


def _json_cores(value: Any) -> str | None:
    """``proc 8:4:4`` is eight cores, four of each kind; Intel Macs give a number."""
    match = re.fullmatch(r"proc (\d{1,4}):(\d{1,4}):(\d{1,4})(?::\d{1,4})?", str(value))
    if match is None:
        return str(value) if isinstance(value, int) else None
    return f"{match.group(1)} ({match.group(2)} performance and {match.group(3)} efficiency)"


def _put_hardware(report: Mapping[str, str], cpu: Fields, memory: Fields) -> None:
    place = "system_profiler SPHardwareDataType"
    total = re.match(r"(\d{1,4})(?: \(|$)", report.get("Total Number of Cores", ""))
    if total is None:
        return
    chip = report.get("Chip") or report.get("Processor Name")
    cpu.put("model_name", chip, place)
    if (chip or "").startswith("Apple"):
        cpu.put("architecture", "arm64", place)
        cpu.put("sockets", 1, place)
    cpu.put("board", report.get("Model Identifier"), place)
    cpu.put("sockets", parse_int(report.get("Number of Processors")), place)
    cores = int(total.group(1))
    cpu.put("physical_cores", cores, place)
    kinds = re.search(r"\((\d{1,4}) performance and (\d{1,4}) efficiency\)", report.get("Total Number of Cores", ""))
    if kinds is not None:
        # Apple's cores run one thread each.
        cpu.put("logical_cores", cores, place)
        cpu.put("performance_cores", int(kinds.group(1)), place)
        cpu.put("efficiency_cores", int(kinds.group(2)), place)
    size = re.fullmatch(r"(\d{1,6}) GB", report.get("Memory", ""))
    memory.put("total_bytes", int(size.group(1)) * GIB if size is not None else None, place)


def _put_vm_stat(source: Source, memory: Fields) -> None:
    """Free, inactive and speculative pages can be had at once; `vm_stat` names its page size first."""
    text = source.run(["vm_stat"]) or ""
    page = re.search(r"page size of (\d{1,9}) bytes", text)
    if page is None:
        return
    pages = {name: parse_int(value.rstrip(".")) for name, value in parse_pairs(text)}
    counts = [pages.get(f"Pages {kind}") for kind in ("free", "inactive", "speculative")]
    if None not in counts:
        memory.put("available_bytes", sum(count or 0 for count in counts) * int(page.group(1)), "vm_stat")
