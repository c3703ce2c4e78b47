"""``nvidia-smi -q -x``: the most complete text that the NVIDIA driver prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from xml.etree import ElementTree as ET

from velollm.facts import GpuFacts, GpuProcess, MigDevice, PcieFacts
from velollm.probe.reading import Reading, given, mebibytes, number, real_uuid, short_pci, unsupported, whole

SOURCE = "nvidia-smi -q -x"
_LIMIT_CHARS = 16 * 1024 * 1024
_DOCTYPE = re.compile(r"<!DOCTYPE[^>\[]*>", re.IGNORECASE)
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_DEVICE_ID = re.compile(r"^(?:0x)?([0-9A-Fa-f]{4})10DE$", re.IGNORECASE)


@dataclass(frozen=True)
class NvidiaText:
    """GPUs that one text shows, and how many the driver says are attached."""

    readings: tuple[Reading, ...]
    attached: int | None = None


def device_half(text: str | None) -> str | None:
    """Device part of NVIDIA's joined PCI id: ``2184`` of ``218410DE`` (10DE is the vendor)."""
    match = _DEVICE_ID.match((given(text) or "").strip())
    return match.group(1).upper() if match else None


def parse_nvidia_xml(text: str) -> NvidiaText | None:
    """GPUs of an XML log; None where the text is none.

    A document type is cut off, entities are refused and a cut-off file gives the GPUs that are whole in it.
    """
    if len(text) > _LIMIT_CHARS or "<nvidia_smi_log" not in text or "<!ENTITY" in text.upper():
        return None
    body = _DOCTYPE.sub("", _DECLARATION.sub("", text))
    # No document type and no entity is left, which is what makes the plain parser unsafe.
    parser: ET.XMLPullParser[Any] = ET.XMLPullParser(("end",))
    gpus: list[ET.Element] = []
    top: dict[str, str | None] = {}
    try:
        parser.feed(body)
        for _, element in cast("Iterator[tuple[str, ET.Element]]", parser.read_events()):
            if element.tag == "gpu":
                gpus.append(element)
            elif element.tag in {"driver_version", "kmd_version", "cuda_version", "cuda_umd_version", "attached_gpus"}:
                top.setdefault(element.tag, element.text)
    except (ET.ParseError, ValueError):
        pass
    if not gpus and not top:
        return None
    readings = tuple(_reading(gpu, place, top) for place, gpu in enumerate(gpus))
    return NvidiaText(readings, whole(top.get("attached_gpus")))


def _text(element: ET.Element | None, *paths: str) -> str | None:
    """First of the paths that holds a value."""
    for path in paths:
        found = None if element is None else element.findtext(path)
        if given(found) is not None:
            return given(found)
    return None


def _version(*texts: str | None) -> str | None:
    """First version among texts such as ``610.62 [Deprecated; …]``."""
    for text in texts:
        match = re.match(r"\s*(\d[\w.]*)", text or "")
        if match:
            return match.group(1)
    return None


def _reading(gpu: ET.Element, place: int, top: dict[str, str | None]) -> Reading:
    total = gpu.findtext("fb_memory_usage/total")
    mig_mode = _text(gpu, "mig_mode/current_mig")
    facts = GpuFacts(
        vendor="nvidia",
        name=_text(gpu, "product_name"),
        vram_bytes=mebibytes(total),
        vram_free_bytes=mebibytes(gpu.findtext("fb_memory_usage/free")),
        vram_used_bytes=mebibytes(gpu.findtext("fb_memory_usage/used")),
        unified_memory=True if unsupported(total) else None,
        driver_version=_version(top.get("kmd_version"), top.get("driver_version")),
        cuda_version=_version(top.get("cuda_umd_version"), top.get("cuda_version")),
        driver_model=_text(gpu, "driver_model/current_dm"),
        mig=None if mig_mode is None else mig_mode == "Enabled",
        mig_devices=_mig_devices(gpu) if mig_mode == "Enabled" else None,
        pcie=_pcie(gpu.find("pci/pci_gpu_link_info")),
        pci=short_pci(_text(gpu, "pci/pci_bus_id") or gpu.get("id")),
        pci_device_id=device_half(gpu.findtext("pci/pci_device_id")),
        display_active=_enabled(_text(gpu, "display_active")),
        power_limit_watts=_power_limit(gpu),
        processes=_processes(gpu.find("processes")),
    )
    return Reading(facts, SOURCE, place, real_uuid(gpu.findtext("uuid")))


def _enabled(text: str | None) -> bool | None:
    return {"Enabled": True, "Disabled": False, "Yes": True, "No": False}.get(text or "")


def _mig_devices(gpu: ET.Element) -> tuple[MigDevice, ...] | None:
    devices = gpu.find("mig_devices")
    if devices is None:
        return None
    return tuple(
        MigDevice(vram_bytes=mebibytes(device.findtext("fb_memory_usage/total")))
        for device in devices.findall("mig_device")
    )


def _pcie(link: ET.Element | None) -> PcieFacts | None:
    if link is None:
        return None
    pcie = PcieFacts(
        gen=whole(link.findtext("pcie_gen/max_link_gen")),
        width=whole(link.findtext("link_widths/max_link_width")),
        gen_now=whole(link.findtext("pcie_gen/current_link_gen")),
        width_now=whole(link.findtext("link_widths/current_link_width")),
    )
    return None if pcie == PcieFacts() else pcie


def _power_limit(gpu: ET.Element) -> float | None:
    for readings in (gpu.find("gpu_power_readings"), gpu.find("power_readings")):
        watts = _text(readings, "enforced_power_limit", ".//current_power_limit", "power_limit")
        if watts:
            return number(watts)
    return None


def _processes(processes: ET.Element | None) -> tuple[GpuProcess, ...] | None:
    if processes is None:
        return None
    found = []
    for entry in processes.findall("process_info"):
        pid = whole(entry.findtext("pid"))
        if pid is not None:
            name = _text(entry, "process_name")
            found.append(GpuProcess(pid=pid, name=name, vram_bytes=_used(entry.findtext("used_memory"))))
    return tuple(found)


def _used(text: str | None) -> int | None:
    """Memory of a process; the driver's sentence under WDDM ("Not available in …") is no number."""
    return mebibytes(text) if text and text.strip().endswith("MiB") else None
