"""GPUs of a captured machine of which only a server's log is there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from velollm.facts import GpuFacts
from velollm.probe.logline import log_lines, parse_fields
from velollm.probe.reading import Reading, short_pci
from velollm.probe.server import parse_server_log
from velollm.units import MIB

SOURCE = "server log"
# ggml's device list: `- CUDA0 : NVIDIA GeForce RTX 2060 (5738 MiB, 5141 MiB free)`.
_DEVICE = re.compile(r"^\s*(?:cmn\s+\S+:)?\s+- ([A-Za-z]+)(\d*)\s*: (.+) \((\d{1,9}) MiB, (\d{1,9}) MiB free\)\s*$")
_PLACE = re.compile(r"using device (\w+) \(.+\) \(([0-9a-fA-F:.]{7,16})\) - ")
_VENDORS = {"cuda": "nvidia", "rocm": "amd", "hip": "amd", "sycl": "intel", "metal": "apple", "mtl": "apple"}
_VENDOR_WORDS = {"nvidia": "nvidia", "geforce": "nvidia", "quadro": "nvidia", "amd": "amd", "radeon": "amd"}
_VENDOR_WORDS |= {"intel": "intel", "apple": "apple"}


def gpus_of_logs(logs: Mapping[str, str]) -> tuple[Reading, ...] | None:
    """GPUs of the one server log that a capture holds.

    None where there are several logs (they can be of several machines) or the log names no device. Total memory
    is taken from the engine's device list only: the sizes in Ollama's own lines are rounded to a tenth of a GiB.
    """
    if len(logs) != 1:
        return None
    text = next(iter(logs.values()))
    devices = _devices(text)
    return devices if devices is not None else _computes(text)


def _vendor(backend: str, name: str | None) -> str | None:
    words = re.findall(r"[a-z]+", (name or "").lower())
    named = next((_VENDOR_WORDS[word] for word in words if word in _VENDOR_WORDS), None)
    return _VENDORS.get(backend.lower()) or named


def _devices(text: str) -> tuple[Reading, ...] | None:
    """GPUs of the last device list; () where it holds the processor only, None where there is no list."""
    listed: dict[str, re.Match[str]] = {}
    places: dict[str, str] = {}
    for line in log_lines(text):
        if line.rstrip().endswith("device_info:"):
            listed = {}
        elif match := _DEVICE.match(line):
            listed[match.group(1) + match.group(2)] = match
        elif match := _PLACE.search(line):
            places[match.group(1)] = match.group(2)
    if not listed:
        return None
    cards = {device: match for device, match in listed.items() if match.group(1).upper() not in {"CPU", "BLAS"}}
    integrated = {gpu.name: gpu.integrated for gpu in parse_server_log(text).gpus or ()}
    readings = []
    for index, (device, match) in enumerate(cards.items()):
        vendor, name = _vendor(match.group(1), match.group(3)), match.group(3).strip()
        # Metal's total is the budget that macOS allows, not memory of its own.
        own = not (integrated.get(name) or vendor == "apple")
        facts = GpuFacts(
            vendor=vendor,
            name=name,
            vram_bytes=int(match.group(4)) * MIB if own else None,
            vram_free_bytes=int(match.group(5)) * MIB if own else None,
            integrated=not own,
            unified_memory=not own,
            pci=short_pci(places.get(device)),
        )
        readings.append(Reading(facts, SOURCE, index))
    return tuple(readings)


def _computes(text: str) -> tuple[Reading, ...] | None:
    """GPUs as ``inference compute`` names them, without sizes."""
    gpus = parse_server_log(text).gpus
    if gpus is None:
        return None
    lines = [parse_fields(line) for line in log_lines(text) if 'msg="inference compute"' in line]
    places = {fields.get("description") or fields.get("name"): fields.get("pci_id") for fields in lines}
    readings = []
    for index, gpu in enumerate(gpus):
        vendor = _vendor(gpu.library or "", gpu.name)
        is_apple = vendor == "apple"
        facts = GpuFacts(
            vendor=vendor,
            name=gpu.name,
            integrated=True if is_apple else gpu.integrated,
            unified_memory=True if is_apple else gpu.integrated,
            compute_capability=gpu.compute if vendor == "nvidia" else None,
            cuda_version=gpu.driver if vendor == "nvidia" and gpu.library == "cuda" else None,
            gfx=gpu.gfx,
            pci=short_pci(places.get(gpu.name)),
        )
        readings.append(Reading(facts, SOURCE, index))
    return tuple(readings)
