"""AMD GPUs: the amdgpu driver's files, rocm-smi, amd-smi, rocminfo, and an APU's traces on the command line.

A graphics aperture (GTT) is main memory that the GPU may map. It is a limit inside RAM, never beside it, so it
is kept for integrated GPUs only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from velollm.facts import GpuFacts, PcieFacts
from velollm.probe.pci import generation, pci_facts
from velollm.probe.reading import Merger, Reading, given, number, short_pci, whole
from velollm.probe.source import Source, TextSource
from velollm.units import MIB

_CARDS = "/sys/class/drm/card*/device/vendor"
_KFD_NODES = "/sys/class/kfd/kfd/topology/nodes/*/properties"
_PAGE_BYTES = 4096
_ROCM_SMI = ("rocm-smi", "--showproductname", "--showbus", "--showdriverversion", "--json")
# Integrated parts in LLVM's table of AMDGPU processors (llvm.org/docs/AMDGPUUsage.html, column "dGPU/APU").
_APU = {
    *("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037"),
    *("gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
}
_BOTH = {"gfx942"}  # MI300X is a card, MI300A an APU
_LINK = re.compile(r"\((\d+(?:\.\d+)?GT/s) x(\d{1,2})\)")
_ROCM_LINE = re.compile(r"^GPU\[(\d{1,3})\]\s*:\s*([^:]+?)\s*:\s*(.*?)\s*$", re.MULTILINE)
_RADEON_CPU = re.compile(r"\bw/ Radeon\b|\bwith Radeon\b", re.IGNORECASE)
# Kernel options that bound the GTT: amdgpu.gttsize in MiB, the TTM manager's in pages.
_OPTIONS = re.compile(r"(?:^|\s)(amdgpu\.gttsize|amdttm\.pages_limit|ttm\.pages_limit)=(\d{1,15})(?=\s|$)")


def is_apu(gfx: str | None) -> bool | None:
    """Is the GPU of this gfx target part of a processor? None where the target does not tell."""
    if gfx is None or gfx in _BOTH or not gfx.startswith("gfx"):
        return None
    return gfx in _APU


def read_amd(source: Source, merger: Merger) -> None:
    """Add this machine's AMD GPUs to ``merger``."""
    merger.add(read_amdgpu(source))
    for text in _texts(source, merger):
        for parse in (parse_rocm_json, parse_rocm_text, parse_amd_smi_json, parse_rocminfo):
            merger.add(parse(text) or ())
    if not merger.has("amd"):
        merger.add(read_apu_traces(source))


def _texts(source: Source, merger: Merger) -> Iterator[str]:
    """Outputs of a captured machine; on this one the tool is started only where the driver shows a GPU."""
    if isinstance(source, TextSource):
        yield from source.commands.values()
    elif merger.has("amd"):
        yield source.run(_ROCM_SMI) or ""


def read_amdgpu(source: Source) -> tuple[Reading, ...]:
    """GPUs that the amdgpu driver shows under /sys/class/drm, without any tool."""
    targets = _kfd_targets(source)
    found: list[Reading] = []
    for path in source.glob(_CARDS):
        folder = path.rpartition("/")[0]
        if not re.search(r"/card\d+/device$", folder) or (source.read(path) or "").strip() != "0x1002":
            continue
        facts = pci_facts(source, folder, "amd")
        gfx = targets.get((facts.pci or "").lower())
        total = _bytes(source.read(f"{folder}/mem_info_vram_total"))
        used = _bytes(source.read(f"{folder}/mem_info_vram_used"))
        apu = is_apu(gfx)
        if apu is None:
            apu = _metrics_say_apu(source.read(f"{folder}/gpu_metrics"))
        update: dict[str, Any] = {
            "name": given(source.read(f"{folder}/product_name")),
            "gfx": gfx,
            "vram_bytes": total,
            "vram_used_bytes": used,
            "vram_free_bytes": total - used if total is not None and used is not None and used <= total else None,
            "integrated": apu,
            "unified_memory": apu,
            "gtt_limit_bytes": _bytes(source.read(f"{folder}/mem_info_gtt_total")) if apu else None,
        }
        found.append(Reading(facts.model_copy(update=update), folder, len(found)))
    return tuple(found)


def _bytes(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,16}", text := text.strip()) else None


def _metrics_say_apu(text: str | None) -> bool | None:
    """Third byte of gpu_metrics is its format: 1 for cards, 2 and 3 for APUs (Linux, kgd_pp_interface.h)."""
    if text is None or len(text) < 4:
        return None
    return {1: False, 2: True, 3: True}.get(ord(text[2]))


def _kfd_targets(source: Source) -> dict[str, str]:
    """gfx target by PCI address, from the compute driver's topology (present without ROCm)."""
    targets = {}
    for path in source.glob(_KFD_NODES):
        values = dict(re.findall(r"^(\w+) (\d{1,15})$", source.read(path) or "", re.MULTILINE))
        version, place = int(values.get("gfx_target_version", 0)), int(values.get("location_id", 0))
        if version:
            # location_id is bus << 8 | device << 3 | function (Linux, kfd_topology.c).
            address = f"{int(values.get('domain', 0)):04x}:{place >> 8 & 255:02x}:{place >> 3 & 31:02x}.{place & 7}"
            targets[address] = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return targets


def _loaded(text: str) -> Any:
    """A JSON document; log lines that a tool printed above it are cut off. None where it is none."""
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    if start < 0:
        return None
    try:
        return json.loads(text[start:])
    except (ValueError, RecursionError):
        return None


def parse_rocm_json(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``rocm-smi … --json``: the members named ``card0``, ``card1`` …; None where it is no such document.

    The spelling of the keys changes between releases ("Card series", "Card Series"), every value is a text.
    """
    document = _loaded(text)
    if not isinstance(document, dict):
        return None
    cards = [(int(k[4:]), v) for k, v in document.items() if re.fullmatch(r"card\d{1,3}", k) and isinstance(v, dict)]
    if not cards:
        return None
    system = document.get("system")
    driver = _lowered(system).get("driver version") if isinstance(system, dict) else None
    return tuple(_rocm_reading(index, _lowered(card), driver, "rocm-smi") for index, card in sorted(cards))


def _lowered(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in values.items()}


def parse_rocm_text(text: str) -> tuple[Reading, ...] | None:
    """GPUs of rocm-smi's plain lines (``GPU[0] : VRAM Total Memory (B): 17163091968``); None where there are none."""
    cards: dict[int, dict[str, str]] = {}
    for index, name, value in _ROCM_LINE.findall(text):
        cards.setdefault(int(index), {})[name.lower()] = value
    driver = re.search(r"^Driver version:\s*(\S+)", text, re.MULTILINE)
    readings = [
        _rocm_reading(index, card, driver.group(1) if driver else None, "rocm-smi")
        for index, card in sorted(cards.items())
    ]
    return tuple(readings) or None


def _rocm_reading(index: int, card: dict[str, str], driver: str | None, source: str) -> Reading:
    total, used = _bytes(card.get("vram total memory (b)")), _bytes(card.get("vram total used memory (b)"))
    gfx = given(card.get("gfx version"))
    apu = is_apu(gfx)
    if apu is None and gfx is None:
        apu = _named_apu(_product(card))
    link = _LINK.search(card.get("pcie clock level", ""))
    facts = GpuFacts(
        vendor="amd",
        name=_product(card),
        vram_bytes=total,
        vram_used_bytes=used,
        vram_free_bytes=total - used if total is not None and used is not None and used <= total else None,
        integrated=apu,
        unified_memory=apu,
        gtt_limit_bytes=_bytes(card.get("gtt total memory (b)")) if apu else None,
        gfx=gfx,
        driver_version=given(driver),
        pci=short_pci(card.get("pci bus")),
        pci_device_id=(given(card.get("device id")) or "").removeprefix("0x").upper() or None,
        numa_node=_positive(card.get("(topology) numa node")),
        pcie=PcieFacts(gen_now=generation(link.group(1)), width_now=int(link.group(2))) if link else None,
        power_limit_watts=number(card.get("max graphics package power (w)")),
    )
    return Reading(facts, source, index)


def _positive(text: str | None) -> int | None:
    value = whole(text)
    return value if value is not None and value >= 0 else None


def _product(card: dict[str, str]) -> str | None:
    for key in ("device name", "card series", "card model"):
        name = given(card.get(key))
        if name and not name.startswith("0x"):
            return name
    return None


def _named_apu(name: str | None) -> bool | None:
    """Cards are sold as RX, Instinct, Pro W or Radeon VII; other names are left open."""
    if name and re.search(r"\bRX \d|Instinct|Radeon VII|Pro W\d|\bMI\d{2,3}\b", name, re.IGNORECASE):
        return False
    return None


def parse_amd_smi_json(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``amd-smi static --json``, with or without the wrapping ``gpu_data``; None where it is none."""
    document = _loaded(text)
    entries = document.get("gpu_data") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not any(isinstance(e, dict) and "asic" in e for e in entries):
        return None
    found = []
    for place, entry in enumerate(e for e in entries if isinstance(e, dict)):
        asic, bus, driver = (_member(entry, name) for name in ("asic", "bus", "driver"))
        gfx = given(str(asic.get("target_graphics_version") or ""))
        apu = is_apu(gfx)
        facts = GpuFacts(
            vendor="amd",
            name=given(str(asic.get("market_name") or "")),
            gfx=gfx,
            vram_bytes=_amount(_member(entry, "vram").get("size")),
            integrated=apu,
            unified_memory=apu,
            driver_version=given(str(driver.get("version") or "")),
            pci=short_pci(str(bus.get("bdf") or "")),
            pci_device_id=(given(str(asic.get("device_id") or "")) or "").removeprefix("0x").upper() or None,
        )
        index = entry.get("gpu")
        found.append(Reading(facts, "amd-smi", index if isinstance(index, int) else place))
    return tuple(found)


def _member(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def _amount(value: Any) -> int | None:
    """Bytes of amd-smi's ``{"value": 24560, "unit": "MB"}``; its MB are 1024 * 1024 bytes."""
    if not isinstance(value, dict) or not isinstance(value.get("value"), int):
        return None
    return (
        int(value["value"]) * {"B": 1, "KB": 1024, "MB": MIB, "GB": 1024 * MIB}.get(str(value.get("unit")), 0) or None
    )


def parse_rocminfo(text: str) -> tuple[Reading, ...] | None:
    """Names and gfx targets of the GPU agents of ``rocminfo``; None where it is no such text."""
    if "HSA Agents" not in text:
        return None
    found: list[Reading] = []
    for agent in re.split(r"^\*{3,}\s*\nAgent \d+", text, flags=re.MULTILINE)[1:]:
        if not re.search(r"^\s*Device Type:\s+GPU\s*$", agent, re.MULTILINE):
            continue
        gfx = re.search(r"^\s*Name:\s+(gfx\w+)", agent, re.MULTILINE)
        name = re.search(r"^\s*Marketing Name:\s+(\S.*?)\s*$", agent, re.MULTILINE)
        apu = is_apu(gfx.group(1)) if gfx else None
        pool = re.search(r"Segment:\s+GLOBAL; FLAGS: COARSE GRAINED\s*\n\s*Size:\s+(\d{1,12})\(", agent)
        facts = GpuFacts(
            vendor="amd",
            name=name.group(1) if name else None,
            gfx=gfx.group(1) if gfx else None,
            integrated=apu,
            unified_memory=apu,
            vram_bytes=int(pool.group(1)) * 1024 if pool and apu is False else None,
        )
        found.append(Reading(facts, "rocminfo", len(found)))
    return tuple(found)


def parse_gtt_limit(cmdline: str) -> int | None:
    """Bytes of GTT that the kernel command line allows; None where no such option is set.

    ``amdgpu.gttsize`` is in MiB, ``amdttm.pages_limit`` and ``ttm.pages_limit`` are in pages of 4 KiB.
    """
    found = {name: int(value) for name, value in _OPTIONS.findall(cmdline)}
    limits = [value * (MIB if name == "amdgpu.gttsize" else _PAGE_BYTES) for name, value in found.items()]
    return min(limits) if limits else None


def read_apu_traces(source: Source) -> tuple[Reading, ...]:
    """An APU known only by its processor's name together with a GTT option on the kernel command line.

    The name alone is no proof: the GPU can be switched off, or a card be beside it.
    """
    limit = parse_gtt_limit(source.read("/proc/cmdline") or "")
    if limit is None or not _RADEON_CPU.search(_cpu_text(source)):
        return ()
    facts = GpuFacts(vendor="amd", integrated=True, unified_memory=True, gtt_limit_bytes=limit)
    return (Reading(facts, "/proc/cmdline"),)


def _cpu_text(source: Source) -> str:
    texts = [source.read("/proc/cpuinfo"), source.run(["lscpu"]), source.run(["dmidecode", "-t", "processor"])]
    return "\n".join(text for text in texts if text)
