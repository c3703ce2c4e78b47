"""NVIDIA GPUs: NVML first, then whatever text of the driver's tools there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.facts import GpuFacts
from velollm.probe.capture import CaptureSource
from velollm.probe.nvidia_table import parse_nvidia_table, parse_versions
from velollm.probe.nvidia_text import (
    parse_numa_status,
    parse_nvidia_apps,
    parse_nvidia_csv,
    parse_nvidia_list,
    parse_nvidia_query,
    parse_nvidia_topology,
    parse_nvml_memory,
    parse_proc_information,
)
from velollm.probe.nvidia_xml import NvidiaText, parse_nvidia_xml
from velollm.probe.nvml import read_nvml
from velollm.probe.reading import Merger, Reading
from velollm.probe.source import Source, TextSource

_QUERY = "index,pci.bus_id,name,compute_cap,memory.total,memory.free,memory.used"
_LIVE_COMMANDS = (("nvidia-smi", "-q", "-x"), ("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"))
_PROC = "/proc/driver/nvidia/gpus"
_VERSION = "/proc/driver/nvidia/version"
_KERNEL_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)")
_COLUMNS = re.compile(r"--query-gpu[= ]([\w.,]+)")
_NONE_FOUND = "No devices were found"
# Tegra chips by device tree, with the compute capability of their GPU (developer.nvidia.com/cuda-gpus).
_TEGRA = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": None}


def read_nvidia(source: Source, merger: Merger) -> tuple[bool, int | None]:
    """Add this machine's NVIDIA GPUs to ``merger``.

    The answer is (did a reader of the driver look and find none, how many the driver says are attached).
    """
    if source.live:
        readings = read_nvml()
        if readings is not None:
            merger.add(readings)
            _add_proc(source, merger)
            _add_tegra(source, merger)
            return not readings, len(readings)
    texts = list(_texts(source))
    parsed = sorted(_parsed(texts), key=lambda pair: pair[0])
    for _, found in parsed:
        merger.add(found.readings)
    _add_proc(source, merger)
    _add_notes(texts, merger)
    _add_tegra(source, merger)
    attached = [found.attached for _, found in parsed if found.attached is not None]
    none_found = any(_NONE_FOUND in text for _, text in texts)
    return none_found, attached[0] if attached else 0 if none_found else None


def _texts(source: Source) -> Iterator[tuple[str, str]]:
    """Command lines and outputs. A captured machine gives all it has: the texts tell what they are."""
    if isinstance(source, TextSource):
        lines = source.command_lines if isinstance(source, CaptureSource) else {}
        for command, text in source.commands.items():
            yield lines.get(command, command), text
        return
    for argv in _LIVE_COMMANDS:
        output = source.run(argv)
        if output is not None:
            yield " ".join(argv), output


def _parsed(texts: list[tuple[str, str]]) -> Iterator[tuple[int, NvidiaText]]:
    """(order of trust, GPUs) of each text that is one of NVIDIA's."""
    for command, text in texts:
        for rank, parse in enumerate((parse_nvidia_xml, parse_nvidia_query)):
            if (found := parse(text)) is not None:
                yield rank, found
        columns = _columns(command)
        for rank, found in (
            (2, parse_nvidia_csv(text, columns) if "query-gpu" in command or _names_gpu(text) else None),
            (3, parse_nvidia_list(text)),
            (4, parse_nvidia_table(text)),
            (5, parse_nvidia_topology(text)),
        ):
            if found is not None:
                yield rank, found


def _names_gpu(text: str) -> bool:
    """Is the first line the header of a ``--query-gpu`` table?"""
    head = text.lstrip().partition("\n")[0]
    return "," in head and any(column in head for column in ("memory.total", "driver_version", "uuid", "pstate"))


def _columns(command: str) -> list[str] | None:
    """Columns of a table without header, from its command line."""
    match = _COLUMNS.search(command)
    return match.group(1).split(",") if match else None


def _add_proc(source: Source, merger: Merger) -> None:
    """GPUs that the kernel module lists; POWER9 and Grace machines tell size and NUMA node of their memory there."""
    folders: dict[str, None] = {}
    for pattern in (f"{_PROC}/*/information", f"{_PROC}/*/numa_status"):
        folders.update(dict.fromkeys(path.rpartition("/")[0] for path in source.glob(pattern)))
    readings = []
    for place, folder in enumerate(sorted(folders)):
        facts = parse_proc_information(source.read(f"{folder}/information") or "")
        node, total = parse_numa_status(source.read(f"{folder}/numa_status") or "")
        address = facts.pci or folder.rpartition("/")[2]
        update = {"pci": address, "numa_node": node, "vram_bytes": total}
        readings.append(Reading(facts.model_copy(update=update), folder, place))
    # The kernel lists all cards, also those that are not for this process.
    merger.add(readings, may_add=not merger.has("nvidia"))
    driver = _KERNEL_MODULE.search(source.read(_VERSION) or "")
    if driver is not None:
        merger.note(GpuFacts(vendor="nvidia", driver_version=driver.group(1)), _VERSION)


def _add_notes(texts: list[tuple[str, str]], merger: Merger) -> None:
    """What is no list of GPUs: versions, processes, an answer of NVML written down."""
    nvidia = [gpu for gpu in merger.facts() if gpu.vendor == "nvidia"]
    if not nvidia:
        return
    for command, text in texts:
        if "nvidia-smi" in command:
            driver, cuda = parse_versions(text)
            merger.note(GpuFacts(vendor="nvidia", driver_version=driver, cuda_version=cuda), command)
        if "nvmlDeviceGetMemoryInfo" in f"{command} {text}" and (memory := parse_nvml_memory(text)):
            merger.add([Reading(memory, "nvmlDeviceGetMemoryInfo")])
    _add_apps(texts, merger, nvidia)


def _add_apps(texts: list[tuple[str, str]], merger: Merger, nvidia: list[GpuFacts]) -> None:
    for command, text in texts:
        apps = parse_nvidia_apps(text) if "nvidia-smi" in command else None
        if apps is None:
            continue
        for gpu in nvidia:
            mine = tuple(app for pci, _, app in apps if _is_on(pci, gpu, alone=len(nvidia) == 1))
            if gpu.pci is not None or len(nvidia) == 1:
                merger.add([Reading(GpuFacts(vendor="nvidia", pci=gpu.pci, processes=mine), command)])


def _is_on(pci: str | None, gpu: GpuFacts, *, alone: bool) -> bool:
    if pci is None or gpu.pci is None:
        return alone
    return pci.lower() == gpu.pci.lower()


def _add_tegra(source: Source, merger: Merger) -> None:
    """Jetson boards before JetPack 6 have no nvidia-smi, and their GPU is on no PCI bus: the device tree names it."""
    compatible = source.read("/proc/device-tree/compatible") or ""
    chip = re.search(r"nvidia,(tegra\d{3})", compatible)
    if chip is None or chip.group(1) not in _TEGRA:
        return
    facts = GpuFacts(vendor="nvidia", integrated=True, unified_memory=True, compute_capability=_TEGRA[chip.group(1)])
    merger.add([Reading(facts, "/proc/device-tree/compatible", 0)])
