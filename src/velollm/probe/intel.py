"""Intel GPUs: sysfs and xpu-smi."""

from __future__ import annotations

import json
import re
from typing import Any

from velollm.facts import GpuFacts, PcieFacts
from velollm.probe.pci import pci_facts
from velollm.probe.reading import Merger, Reading, given, short_pci, whole
from velollm.probe.source import Source, TextSource
from velollm.units import parse_bytes

_CARDS = "/sys/class/drm/card*/device/vendor"
_XPU_SMI = ("xpu-smi", "discovery", "-j")
_ROW = re.compile(r"^\|\s*(\d{0,4})\s*\|\s*([^:|]+?):\s*(.*?)\s*\|\s*$")
# Cards by product name (Intel's product pages): Arc A, B5xx and B7xx, Arc Pro A and B, Data Center GPU, Iris Xe MAX.
# "Arc Graphics", "Arc 140V" and "Arc B390" are parts of a processor.
_CARD = re.compile(r"Arc.*\b(?:A\d{3}M?|B[57]\d{2}M?|Pro (?:A|B)\d{2}M?)\b|Data Center GPU|Xe MAX", re.IGNORECASE)
_PART = re.compile(
    r"\b(?:UHD|HD|Iris)\b|Arc(?:\(TM\))? (?:Graphics|\d{3}[VT]|B3\d{2})|^Intel\(R\) Graphics", re.IGNORECASE
)
# The processor's own GPU is device 2 of bus 0 (Intel graphics programmer's reference, "00:02.0").
_OWN_PLACE = re.compile(r"^(?:0000:)?00:02\.0$")


def is_integrated(name: str | None, pci: str | None = None) -> bool | None:
    """Is an Intel GPU part of the processor? By name, else by its place on the bus; None where neither tells."""
    if name and _CARD.search(name):
        return False
    if name and _PART.search(name):
        return True
    return bool(_OWN_PLACE.match(pci)) if pci else None


def read_intel(source: Source, merger: Merger) -> None:
    """Add this machine's Intel GPUs to ``merger``."""
    merger.add(read_sysfs(source))
    if isinstance(source, TextSource):
        texts = list(source.commands.values())
    else:
        texts = [source.run(_XPU_SMI) or ""] if merger.has("intel") else []
    for text in texts:
        merger.add(parse_xpu_json(text) or parse_xpu_table(text) or ())


def read_sysfs(source: Source) -> tuple[Reading, ...]:
    """Intel GPUs under /sys/class/drm. Memory is known only where the driver shows it (out-of-tree i915, xe)."""
    found: list[Reading] = []
    for path in source.glob(_CARDS):
        folder = path.rpartition("/")[0]
        if not re.search(r"/card\d+/device$", folder) or (source.read(path) or "").strip() != "0x8086":
            continue
        facts = pci_facts(source, folder, "intel")
        part = is_integrated(None, facts.pci)
        sizes = (f"{folder.rpartition('/')[0]}/lmem_total_bytes", f"{folder}/tile0/physical_vram_size_bytes")
        total = next((size for path in sizes if (size := _size(source.read(path)))), None)
        update = {"integrated": part, "unified_memory": part, "vram_bytes": None if part else total}
        found.append(Reading(facts.model_copy(update=update), folder, len(found)))
    return tuple(found)


def _size(text: str | None) -> int | None:
    clean = (text or "").strip()
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,15}|\d{1,16}", clean):
        return None
    return int(clean, 16 if clean.startswith("0x") else 10) or None


def parse_xpu_table(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``xpu-smi discovery``, with or without ``-d``; None where it is no such table.

    A device spans several rows, and only the first one carries its number.
    """
    devices: list[tuple[int, dict[str, str]]] = []
    for line in text.splitlines()[:20_000]:
        match = _ROW.match(line)
        if match is None:
            continue
        if match.group(1):
            devices.append((int(match.group(1)), {}))
        if devices:
            devices[-1][1].setdefault(match.group(2).strip().lower(), match.group(3))
    readings = [_reading(index, values) for index, values in devices if "device name" in values]
    return tuple(readings) or None


def parse_xpu_json(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``xpu-smi discovery -j``; None where it is no such document."""
    if '"device_name"' not in text:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    entries: Any = document.get("device_list", [document]) if isinstance(document, dict) else document
    if not isinstance(entries, list):
        return None
    readings = []
    for place, entry in enumerate(e for e in entries if isinstance(e, dict) and "device_name" in e):
        memory = entry.get("memory_physical_size_byte")
        values = {
            "device name": str(entry["device_name"]),
            "pci bdf address": str(entry.get("pci_bdf_address", "")),
            "memory physical size": f"{memory} B" if memory else "",
            "driver version": str(entry.get("driver_version", "")),
        }
        readings.append(_reading(place, values))
    return tuple(readings) or None


def _reading(index: int, values: dict[str, str]) -> Reading:
    name, pci = given(values.get("device name")), short_pci(values.get("pci bdf address"))
    part = is_integrated(name, pci)
    gen, width = whole(values.get("pcie generation")), whole(values.get("pcie max link width"))
    # Zero means that the tool could not read it: an integrated GPU has none of its own.
    total = parse_bytes(values.get("memory physical size", "")) or None
    facts = GpuFacts(
        vendor="intel",
        name=name,
        vram_bytes=None if part else total,
        integrated=part,
        unified_memory=part,
        pci=pci,
        driver_version=given(values.get("driver version")),
        pcie=PcieFacts(gen=gen, width=width) if gen and width and gen > 0 and width > 0 else None,
    )
    return Reading(facts, "xpu-smi discovery", index)
