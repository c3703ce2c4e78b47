"""Display devices on the PCI bus, from sysfs or from ``lspci`` text: they tell that a GPU is there, driver or not."""

from __future__ import annotations

import re

from velollm.facts import GpuFacts, PcieFacts
from velollm.probe.reading import Reading, short_pci
from velollm.probe.source import Source
from velollm.units import parse_cpu_list

_DEVICES = "/sys/bus/pci/devices"
# PCI code and ID assignment: 0x03 is a display controller, 0x12 a processing accelerator (Instinct MI300X).
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
VENDORS = {"10de": "nvidia", "1002": "amd", "8086": "intel"}
# Generations by the rate of one lane, PCI Express base specification.
_GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4, "32": 5, "32.0": 5, "64.0": 6}
_LSPCI = re.compile(
    r"^(?P<slot>[0-9a-fA-F:.]{7,16}) (?P<class>VGA compatible controller|3D controller|Display controller"
    r"|Processing accelerators)(?: \[03\d\d\]| \[12\d\d\])?: (?P<device>.+)$",
    re.MULTILINE,
)
_LSPCI_LINE = re.compile(r"^(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7] [^:]+: ", re.MULTILINE)
_LSPCI_VENDORS = {"NVIDIA Corporation": "nvidia", "Advanced Micro Devices": "amd", "Intel Corporation": "intel"}


def generation(rate: str | None) -> int | None:
    """PCIe generation of a rate such as ``16.0 GT/s PCIe``; None where it is none."""
    match = re.match(r"\s*(\d+(?:\.\d+)?)\s*GT/s", rate or "")
    return _GENERATIONS.get(match.group(1)) if match else None


def parse_lspci(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``lspci`` (plain or ``-nn``); () where a bus without one is listed, None where it is no such text."""
    if not _LSPCI_LINE.search(text):
        return None
    found = []
    for match in _LSPCI.finditer(text):
        device = match.group("device")
        vendor = next((v for name, v in _LSPCI_VENDORS.items() if name in device), None)
        if vendor is None:
            continue
        ids = re.search(r"\[(?:10de|1002|8086):([0-9a-f]{4})\]", device, re.IGNORECASE)
        facts = GpuFacts(
            vendor=vendor,
            name=_product(device),
            pci=short_pci(match.group("slot")),
            pci_device_id=ids.group(1).upper() if ids else None,
        )
        found.append(Reading(facts, "lspci"))
    return tuple(found)


def _product(device: str) -> str | None:
    """Product in the last brackets that hold words, such as ``GeForce RTX 3090``; a bare chip name stays out."""
    names = [
        name
        for name in re.findall(r"\[([^\[\]]+)\]", device)
        if not re.fullmatch(r"[0-9a-f]{4}(:[0-9a-f]{4})?|AMD/ATI", name, re.I)
    ]
    return names[-1] if names else None


def read_pci(source: Source) -> tuple[Reading, ...] | None:
    """GPUs of NVIDIA, AMD and Intel on the PCI bus; () where there is a bus without any, None where no bus is shown."""
    listed = source.glob(f"{_DEVICES}/*/class")
    if not listed:
        return parse_lspci(source.run(["lspci"]) or source.run(["lspci", "-nn"]) or "") if not source.live else None
    found = []
    for path in listed:
        folder = path.rpartition("/")[0]
        kind = (source.read(path) or "").strip()
        vendor = VENDORS.get((source.read(f"{folder}/vendor") or "").strip().removeprefix("0x").lower())
        if vendor and (kind.startswith(_DISPLAY) or (kind.startswith(_ACCELERATOR) and vendor == "amd")):
            found.append(Reading(pci_facts(source, folder, vendor), folder))
    return tuple(found)


def pci_facts(source: Source, folder: str, vendor: str) -> GpuFacts:
    """Address, ids, link and place of a PCI device in sysfs; ``folder`` is its directory."""

    def value(name: str) -> str:
        return (source.read(f"{folder}/{name}") or "").strip()

    node = value("numa_node")
    cpus = value("local_cpulist")
    pcie = PcieFacts(
        gen=generation(value("max_link_speed")),
        width=_lanes(value("max_link_width")),
        gen_now=generation(value("current_link_speed")),
        width_now=_lanes(value("current_link_width")),
    )
    slot = re.search(r"^PCI_SLOT_NAME=(\S+)", value("uevent"), re.MULTILINE)
    return GpuFacts(
        vendor=vendor,
        pci=short_pci(slot.group(1) if slot else folder.rpartition("/")[2]),
        pci_device_id=value("device").removeprefix("0x").upper() or None,
        numa_node=int(node) if re.fullmatch(r"\d{1,6}", node) else None,
        cpu_affinity=cpus if parse_cpu_list(cpus) else None,
        pcie=None if pcie == PcieFacts() else pcie,
    )


def _lanes(text: str) -> int | None:
    """Lanes of a link; sysfs says 0 or 255 where it does not know."""
    return int(text) if re.fullmatch(r"\d{1,3}", text) and 0 < int(text) <= 32 else None
