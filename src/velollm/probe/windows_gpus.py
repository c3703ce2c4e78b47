"""Video controllers as Windows lists them (``Get-CimInstance Win32_VideoController``, ``wmic``)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from velollm.facts import GpuFacts
from velollm.probe.intel import is_integrated
from velollm.probe.reading import Merger, Reading, given
from velollm.probe.source import Source, TextSource

_QUERY = "Get-CimInstance Win32_VideoController | Format-List Name,AdapterRAM,DriverVersion,PNPDeviceID"
_FIELD = re.compile(r"^\s*(\w+)\s*[:=]\s*(.*?)\s*$")
_FIELDS = {"adapterram", "driverversion", "videoprocessor", "adaptercompatibility"}
_VENDORS = {"nvidia": "nvidia", "geforce": "nvidia", "amd": "amd", "radeon": "amd", "intel": "intel"}
_PCI_VENDORS = {"10de": "nvidia", "1002": "amd", "8086": "intel"}
_AMD_CARD = re.compile(r"\bRX \d|Radeon VII|Pro W\d|Instinct", re.IGNORECASE)
_AMD_PART = re.compile(
    r"Radeon(?:\(TM\))? (?:Graphics|\d{3,4}[MS]\b|Vega \d+ Graphics)|Vega \d+ Graphics", re.IGNORECASE
)


def read_windows(source: Source, merger: Merger) -> None:
    """Add the video controllers to ``merger``: they fill gaps, and name GPUs that no vendor's tool showed."""
    for text in _texts(source):
        merger.add(parse_video_controllers(text) or (), may_add=False)


def _texts(source: Source) -> Iterator[str]:
    if isinstance(source, TextSource):
        yield from source.commands.values()
        return
    text = source.run(["powershell", "-NoProfile", "-Command", _QUERY]) if sys.platform == "win32" else None
    if text is not None:
        yield text


def parse_video_controllers(text: str) -> tuple[Reading, ...] | None:
    """GPUs of the list form, of ``wmic … /format:list`` or of ``ConvertTo-Json``; None where it is no such text.

    ``AdapterRAM`` is left out: it has 32 bits (4 GiB at most), and an integrated GPU's is a share of main memory.
    Adapters of no GPU vendor (basic display, remote desktop) are no GPUs.
    """
    entries = _json_entries(text) if text.lstrip().startswith(("{", "[")) else list(_list_entries(text))
    if not any(_FIELDS & entry.keys() for entry in entries):
        return None
    found: list[Reading] = []
    for entry in entries:
        name = given(entry.get("name") or entry.get("caption"))
        device = re.search(r"VEN_([0-9A-F]{4})&DEV_([0-9A-F]{4})", entry.get("pnpdeviceid", ""), re.IGNORECASE)
        vendor = _PCI_VENDORS.get(device.group(1).lower()) if device else _vendor(name)
        if vendor is None or name is None:
            continue
        part = _is_part(vendor, name)
        facts = GpuFacts(
            vendor=vendor,
            name=name,
            integrated=part,
            unified_memory=part,
            # NVIDIA's own number is in the last five digits; its tools print it, Windows' form would clash.
            driver_version=None if vendor == "nvidia" else given(entry.get("driverversion")),
            pci_device_id=device.group(2).upper() if device else None,
        )
        index = sum(1 for reading in found if reading.facts.vendor == vendor)
        found.append(Reading(facts, "Win32_VideoController", index))
    return tuple(found)


def _list_entries(text: str) -> Iterator[dict[str, str]]:
    """Entries of ``name : value`` lines; an empty line or a name that comes again begins the next one."""
    entry: dict[str, str] = {}
    for line in text.replace("\r\r\n", "\n").splitlines()[:20_000]:
        match = _FIELD.match(line)
        if match is None or match.group(1).lower() in entry:
            if entry:
                yield entry
            entry = {}
        if match is not None:
            entry[match.group(1).lower()] = match.group(2)
    if entry:
        yield entry


def _json_entries(text: str) -> list[dict[str, str]]:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    entries = document if isinstance(document, list) else [document]
    return [{str(k).lower(): str(v) for k, v in e.items() if v is not None} for e in entries if isinstance(e, Mapping)]


def _vendor(name: str | None) -> str | None:
    words = re.findall(r"[a-z]+", (name or "").lower())
    return next((_VENDORS[word] for word in words if word in _VENDORS), None)


def _is_part(vendor: str, name: str) -> bool | None:
    if vendor == "intel":
        return is_integrated(name)
    if vendor == "amd":
        return False if _AMD_CARD.search(name) else True if _AMD_PART.search(name) else None
    return False
