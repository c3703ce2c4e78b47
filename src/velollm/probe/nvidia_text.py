"""Plain texts of NVIDIA's tools and driver: second readers beside NVML.

Formats as printed by drivers 418 to 610. From 610 the banner says ``KMD Version`` and ``CUDA UMD Version``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from velollm.facts import GpuFacts, GpuProcess, MigDevice, PcieFacts
from velollm.probe.nvidia_xml import NvidiaText, device_half
from velollm.probe.reading import Reading, given, mebibytes, number, real_uuid, short_pci, unsupported, whole
from velollm.units import MIB, parse_cpu_list

_LINE_LIMIT = 200_000
_LISTED = re.compile(r"^GPU (\d+): (.+?) \(UUID: (\S+)\)\s*$")
_LISTED_MIG = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+):")
_THROTTLE = ("SW Thermal Slowdown", "HW Thermal Slowdown", "HW Power Brake Slowdown")
_NUMA_STATUS = re.compile(r"^(Node|Size):\s*(\w+)", re.MULTILINE)


@dataclass
class _Section:
    """A heading of ``nvidia-smi -q`` with its lines and what stands indented below it."""

    title: str
    values: list[tuple[str, str]] = field(default_factory=list)
    sections: list[_Section] = field(default_factory=list)

    def value(self, *path: str) -> str | None:
        here: _Section | None = self
        for step in path[:-1]:
            here = next((s for s in here.sections if s.title == step), None) if here else None
        return next((text for name, text in here.values if name == path[-1]), None) if here else None

    def child(self, title: str) -> _Section | None:
        return next((s for s in self.sections if s.title == title), None)


def _tree(text: str) -> _Section:
    root = _Section("")
    open_sections: list[tuple[int, _Section]] = [(-1, root)]
    for line in text.splitlines()[:_LINE_LIMIT]:
        body = line.strip()
        if not body or body.startswith("="):
            continue
        indent = len(line) - len(line.lstrip())
        while open_sections[-1][0] >= indent:
            open_sections.pop()
        name, colon, value = body.partition(" : ")
        if colon or body.endswith(" :"):
            open_sections[-1][1].values.append((name.rstrip(" :"), value.strip()))
            if name.strip() != "Process ID":
                continue
        section = _Section(name.strip())
        section.values.append(("", value.strip()))
        open_sections[-1][1].sections.append(section)
        open_sections.append((indent, section))
    return root


def _version(*texts: str | None) -> str | None:
    for text in texts:
        match = re.match(r"\s*(\d[\w.]*)", text or "")
        if match:
            return match.group(1)
    return None


def parse_nvidia_query(text: str) -> NvidiaText | None:
    """GPUs of the indented text of ``nvidia-smi -q``; None where it is none."""
    if "NVSMI LOG" not in text:
        return None
    root = _tree(text)
    gpus = [section for section in root.sections if re.match(r"GPU [0-9A-Fa-f]{4,8}:", section.title)]
    readings = tuple(_query_reading(gpu, place, root) for place, gpu in enumerate(gpus))
    return NvidiaText(readings, whole(root.value("Attached GPUs")))


def _query_reading(gpu: _Section, place: int, root: _Section) -> Reading:
    total = gpu.value("FB Memory Usage", "Total")
    mode = given(gpu.value("MIG Mode", "Current"))
    migs = [s for s in gpu.sections if s.title == "MIG Device"]
    link = ("PCI", "GPU Link Info")
    pcie = PcieFacts(
        gen=whole(gpu.value(*link, "PCIe Generation", "Max")),
        width=whole(gpu.value(*link, "Link Width", "Max")),
        gen_now=whole(gpu.value(*link, "PCIe Generation", "Current")),
        width_now=whole(gpu.value(*link, "Link Width", "Current")),
    )
    facts = GpuFacts(
        vendor="nvidia",
        name=given(gpu.value("Product Name")),
        vram_bytes=mebibytes(total),
        vram_free_bytes=mebibytes(gpu.value("FB Memory Usage", "Free")),
        vram_used_bytes=mebibytes(gpu.value("FB Memory Usage", "Used")),
        unified_memory=True if unsupported(total) else None,
        driver_version=_version(root.value("KMD Version"), root.value("Driver Version")),
        cuda_version=_version(root.value("CUDA UMD Version"), root.value("CUDA Version")),
        driver_model=given(gpu.value("Driver Model", "Current")),
        mig=None if mode is None else mode == "Enabled",
        mig_devices=tuple(
            MigDevice(
                vram_bytes=mebibytes(m.value("Shared FB Memory Usage", "Total") or m.value("FB Memory Usage", "Total"))
            )
            for m in migs
        )
        if mode == "Enabled"
        else None,
        pcie=None if pcie == PcieFacts() else pcie,
        pci=short_pci(gpu.title.removeprefix("GPU ")),
        pci_device_id=device_half(gpu.value("PCI", "Device Id")),
        display_active={"Enabled": True, "Disabled": False}.get(gpu.value("Display Active") or ""),
        power_limit_watts=_query_power(gpu),
        throttle_reasons=_query_throttle(gpu),
        processes=_query_processes(gpu),
    )
    return Reading(facts, "nvidia-smi -q", place, real_uuid(gpu.value("GPU UUID")))


def _query_power(gpu: _Section) -> float | None:
    power = gpu.child("GPU Power Readings") or gpu.child("Power Readings")
    if power is None:
        return None
    for path in (
        ("Enforced Power Limit",),
        ("Current Power Limit",),
        ("GPU Ceiling Power Limit", "Current Power Limit"),
        ("Power Limit",),
    ):
        watts = number(power.value(*path))
        if watts is not None:
            return watts
    return None


def _query_processes(gpu: _Section) -> tuple[GpuProcess, ...] | None:
    if gpu.value("Processes") == "None":
        return ()
    section = gpu.child("Processes")
    if section is None:
        return None
    found = []
    for entry in section.sections:
        pid = whole(entry.value(""))
        if entry.title == "Process ID" and pid is not None:
            used = entry.value("Used GPU Memory") or ""
            memory = mebibytes(used) if used.endswith("MiB") else None
            found.append(GpuProcess(pid=pid, name=given(entry.value("Name")), vram_bytes=memory))
    return tuple(found)


def parse_nvidia_list(text: str) -> NvidiaText | None:
    """Names, UUIDs and MIG profiles of ``nvidia-smi -L``; None where no line is one of it."""
    names: list[tuple[int, str, str]] = []
    profiles: dict[int, list[MigDevice]] = {}
    for line in text.splitlines()[:_LINE_LIMIT]:
        if match := _LISTED.match(line):
            names.append((int(match.group(1)[:9]), match.group(2), match.group(3)))
        elif names and (match := _LISTED_MIG.match(line)):
            profiles.setdefault(names[-1][0], []).append(MigDevice(profile=match.group(1)))
    if not names:
        return None
    return NvidiaText(
        tuple(
            Reading(
                GpuFacts(
                    vendor="nvidia",
                    name=name,
                    mig=True if index in profiles else None,
                    mig_devices=tuple(profiles[index]) if index in profiles else None,
                ),
                "nvidia-smi -L",
                index,
                real_uuid(uuid),
            )
            for index, name, uuid in names
        )
    )


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines()[:_LINE_LIMIT] if line.strip()]
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True)]
    except csv.Error:
        return []


def _plain_column(name: str) -> str:
    return re.sub(r"\s*\[.*\]$", "", name.strip().lower())


def _query_throttle(gpu: _Section) -> tuple[str, ...] | None:
    """Heat and power that hold the clock down now; from driver 530 on the heading has another name."""
    for heading in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        states = {name: gpu.value(heading, name) for name in _THROTTLE}
        if any(states.values()):
            return tuple(name for name, state in states.items() if state == "Active")
    return None


def parse_nvidia_csv(text: str, columns: Sequence[str] | None = None) -> NvidiaText | None:
    """GPUs of ``nvidia-smi --query-gpu=… --format=csv``.

    ``columns`` names the columns where the text has no header line (``noheader``). None where neither a header
    nor ``columns`` fits.
    """
    rows = _cells(text)
    header = [_plain_column(cell) for cell in rows[0]] if rows else []
    if {"name", "gpu_name", "memory.total", "index", "uuid", "gpu_uuid"} & set(header) and "pid" not in header:
        rows = rows[1:]
    elif columns:
        header = [_plain_column(name) for name in columns]
    else:
        return None
    readings = []
    for place, row in enumerate(rows):
        if len(row) == len(header):
            readings.append(_csv_reading(dict(zip(header, row, strict=True)), place))
    return NvidiaText(tuple(readings))


def _csv_reading(row: dict[str, str], place: int) -> Reading:
    mode = given(row.get("mig.mode.current"))
    pcie = PcieFacts(
        gen=whole(row.get("pcie.link.gen.max")),
        width=whole(row.get("pcie.link.width.max")),
        gen_now=whole(row.get("pcie.link.gen.current")),
        width_now=whole(row.get("pcie.link.width.current")),
    )
    watts = next((w for n in ("enforced.power.limit", "power.limit") if (w := number(row.get(n))) is not None), None)
    index = whole(row.get("index"))
    facts = GpuFacts(
        vendor="nvidia",
        name=given(row.get("name") or row.get("gpu_name")),
        vram_bytes=mebibytes(row.get("memory.total")),
        vram_free_bytes=mebibytes(row.get("memory.free")),
        vram_used_bytes=mebibytes(row.get("memory.used")),
        unified_memory=True if unsupported(row.get("memory.total")) else None,
        compute_capability=given(row.get("compute_cap")),
        driver_version=_version(row.get("driver_version")),
        driver_model=given(row.get("driver_model.current")),
        mig=None if mode is None else mode == "Enabled",
        pcie=None if pcie == PcieFacts() else pcie,
        pci=short_pci(row.get("pci.bus_id") or row.get("gpu_bus_id")),
        display_active={"enabled": True, "disabled": False}.get((row.get("display_active") or "").lower()),
        power_limit_watts=watts,
    )
    uuid = real_uuid(row.get("uuid") or row.get("gpu_uuid"))
    return Reading(facts, "nvidia-smi --query-gpu", place if index is None else index, uuid)


def parse_nvidia_apps(text: str) -> tuple[tuple[str | None, str | None, GpuProcess], ...] | None:
    """(PCI address, UUID, process) of ``nvidia-smi --query-compute-apps=… --format=csv``; None where it is none."""
    rows = _cells(text)
    header = [_plain_column(cell) for cell in rows[0]] if rows else []
    if "pid" not in header:
        return None
    found = []
    for cells in rows[1:]:
        row = dict(zip(header, cells, strict=False))
        pid = whole(row.get("pid"))
        if pid is not None:
            used = mebibytes(row.get("used_gpu_memory") or row.get("used_memory"))
            process = GpuProcess(pid=pid, name=given(row.get("process_name") or row.get("name")), vram_bytes=used)
            found.append((short_pci(row.get("gpu_bus_id")), real_uuid(row.get("gpu_uuid")), process))
    return tuple(found)


def parse_nvidia_topology(text: str) -> NvidiaText | None:
    """CPU and NUMA affinity of ``nvidia-smi topo -m`` (columns parted by tabs); None where it is none."""
    lines = text.splitlines()[:_LINE_LIMIT]
    head = next((line for line in lines if "CPU Affinity" in line and "\t" in line), None)
    if head is None:
        return None
    columns = [re.sub(r"\x1b\[[0-9;]*m", "", cell).strip() for cell in head.split("\t")]
    readings = []
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        match = re.match(r"^GPU(\d{1,4})$", re.sub(r"\x1b\[[0-9;]*m", "", cells[0]).strip())
        if match is None or len(cells) < 2:
            continue
        row = dict(zip(columns, cells, strict=False))
        cpus = row.get("CPU Affinity") or ""
        facts = GpuFacts(
            vendor="nvidia",
            cpu_affinity=cpus if parse_cpu_list(cpus) else None,
            numa_node=_node(row.get("NUMA Affinity")),
        )
        readings.append(Reading(facts, "nvidia-smi topo -m", int(match.group(1))))
    return NvidiaText(tuple(readings))


def _node(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,6}", text) else None


def parse_numa_status(text: str) -> tuple[int | None, int | None]:
    """(NUMA node, bytes) of ``/proc/driver/nvidia/gpus/*/numa_status``; the size is hexadecimal there."""
    values = dict(_NUMA_STATUS.findall(text))
    size = values.get("Size", "")
    total = int(size, 16) if re.fullmatch(r"[0-9A-Fa-f]{1,15}", size) else None
    return _node(values.get("Node")), total or None


def parse_proc_information(text: str) -> GpuFacts:
    """Name and PCI address of ``/proc/driver/nvidia/gpus/*/information``."""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    name = given(values.get("Model"))
    return GpuFacts(vendor="nvidia", name=name, pci=short_pci(values.get("Bus Location")))


def parse_nvml_memory(text: str) -> GpuFacts | None:
    """What ``nvmlDeviceGetMemoryInfo`` answered, noted as text: refused, or ``total`` and its sisters in bytes."""
    if "NVML_ERROR_NOT_SUPPORTED" in text:
        return GpuFacts(vendor="nvidia", unified_memory=True)
    sizes = {name: int(value) for name, value in re.findall(r"\b(total|free|used)\s*[:=]\s*(\d{7,15})\b", text)}
    if not sizes or sizes.get("total", 0) < MIB:
        return None
    return GpuFacts(
        vendor="nvidia",
        vram_bytes=sizes.get("total"),
        vram_free_bytes=sizes.get("free"),
        vram_used_bytes=sizes.get("used"),
    )
