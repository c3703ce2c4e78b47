"""All GPUs of a machine, by all readers, with every byte counted once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from velollm.facts import GpuFacts
from velollm.probe.amd import read_amd
from velollm.probe.apple import read_apple
from velollm.probe.capture import CaptureSource
from velollm.probe.intel import read_intel
from velollm.probe.loggpus import gpus_of_logs
from velollm.probe.nvidia import read_nvidia
from velollm.probe.pci import read_pci
from velollm.probe.reading import Merger
from velollm.probe.source import Source, TextSource
from velollm.probe.windows_gpus import read_windows
from velollm.units import KIB

# NVIDIA parts that share main memory with the processor: Jetson modules and the DGX Spark.
_NVIDIA_PART = re.compile(r"\b(?:GB10|Orin|Xavier|Thor|Tegra|nvgpu|Jetson)\b", re.IGNORECASE)


@dataclass(frozen=True)
class GpuProbe:
    """GPUs of a machine.

    ``gpus``: None where the source cannot tell, () where somebody looked and found none. ``attached``: how many the
    driver counts, which can be more than it shows. ``sources``: reader of each value, by path (``gpus.0.name``).
    """

    gpus: tuple[GpuFacts, ...] | None
    attached: int | None
    sources: dict[str, str] = field(default_factory=dict)


def probe_gpus(source: Source) -> GpuProbe:
    """Read the GPUs that ``source`` shows.

    Readers come in the order of trust: NVML before nvidia-smi's texts, drivers' files and tools before the PCI bus,
    which says that a card is there but not what it holds, and a server's log last.
    """
    merger = Merger()
    none_found, attached = read_nvidia(source, merger)
    read_amd(source, merger)
    read_intel(source, merger)
    looked = read_apple(source, merger)
    bus = read_pci(source)
    merger.add(bus or (), may_add=False)
    read_windows(source, merger)
    if isinstance(source, CaptureSource) and not merger.facts():
        logged = gpus_of_logs(source.logs)
        merger.add(logged or ())
        looked = looked or logged == ()
    found = merger.facts()
    if not found and not (none_found or looked or bus is not None or _looks_at_linux(source)):
        return GpuProbe(None, attached)
    pool = _pool_bytes(source)
    gpus = tuple(_settled(gpu, pool) for gpu in found)
    return GpuProbe(gpus, attached, _sources(gpus, merger.sources()))


def _sources(gpus: tuple[GpuFacts, ...], said: dict[str, str]) -> dict[str, str]:
    """Reader of each value that is left, and what was worked out of them."""
    named = {
        f"gpus.{place}.{name}": "main memory" if name == "shared_pool_bytes" else "worked out of the other values"
        for place, gpu in enumerate(gpus)
        for name in GpuFacts.field_names()
        if getattr(gpu, name) is not None
    }
    return {path: said.get(path, how) for path, how in named.items()}


def _looks_at_linux(source: Source) -> bool:
    """On this machine the absence of a driver's files is an answer, once the kernel's tree can be read at all."""
    return source.live and bool(source.glob("/sys/class/*"))


def _pool_bytes(source: Source) -> int | None:
    """Main memory that integrated GPUs share: MemTotal on Linux, hw.memsize on a Mac."""
    match = re.search(r"^MemTotal:\s+(\d{1,15}) kB", source.read("/proc/meminfo") or "", re.MULTILINE)
    if match:
        return int(match.group(1)) * KIB
    if source.live:
        text = source.run(["sysctl", "hw.memsize"]) if not source.glob("/proc/*") else None
    else:
        text = "\n".join(source.commands.values()) if isinstance(source, TextSource) else None
    match = re.search(r"^hw\.memsize\s*[:=]\s*(\d{1,15})\s*$", text or "", re.MULTILINE)
    return int(match.group(1)) if match else None


def _settled(gpu: GpuFacts, pool: int | None) -> GpuFacts:
    """Say whose memory it is, once all readers have spoken.

    Memory that a shared GPU reports is main memory and is not repeated as its own, unless the firmware has carved
    it out (AMD's ``mem_info_vram_total``): then the kernel no longer counts it as RAM.
    """
    shared = _shares_memory(gpu)
    update: dict[str, object] = {"unified_memory": shared}
    update["integrated"] = shared if gpu.integrated is None else gpu.integrated
    if shared:
        update["shared_pool_bytes"] = pool
        if gpu.vendor != "amd":
            update |= {"vram_bytes": None, "vram_free_bytes": None, "vram_used_bytes": None}
    if gpu.mig and gpu.mig_devices is not None:
        sizes = [device.vram_bytes for device in gpu.mig_devices]
        # One process can use one slice; with none made, none can use anything.
        update["largest_usable_bytes"] = None if None in sizes else max((s for s in sizes if s is not None), default=0)
    return gpu.model_copy(update=update)


def _shares_memory(gpu: GpuFacts) -> bool | None:
    if gpu.vendor != "nvidia":
        return gpu.unified_memory if gpu.unified_memory is not None else gpu.integrated
    if gpu.name and _NVIDIA_PART.search(gpu.name):
        return True
    # A second reader may lack the size that a better one gave: the size decides.
    return False if gpu.vram_bytes is not None else gpu.unified_memory
