"""GPUs that are there but cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, evidence
from velollm.facts import Facts, GpuFacts

_NAME = "gpu-driver"
_WHY = "without a working driver every model runs on the processor"

# Linux drivers that CUDA builds need at least (NVIDIA, CUDA Toolkit release notes, minor version compatibility).
_CUDA_11_DRIVER, _CUDA_12_DRIVER = 450, 525


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a GPU on the PCI bus that no driver shows, a driver that does not answer, and one that is too old.

    A card that a container was not given is a note, and so is a driver for CUDA 11 only: it works, but
    current engines are built for CUDA 12 and later.
    """
    if facts.gpus is None:
        return
    vendors = {gpu.vendor for gpu in facts.gpus}
    if "nvidia" not in vendors:
        yield from _no_nvidia(facts)
    if "amd" not in vendors:
        yield from _no_amd(facts)
    yield from _old_drivers(facts, facts.gpus)
    if facts.gpus_attached is not None and facts.gpus_attached > len(facts.gpus):
        yield Finding(
            _NAME,
            "note",
            f"{facts.gpus_attached} GPUs are attached, {len(facts.gpus)} of them can be seen",
            (evidence(facts, "gpus_attached", facts.gpus_attached), evidence(facts, "gpus", len(facts.gpus))),
            "nvidia-smi -L",
            _WHY,
        )


def _no_nvidia(facts: Facts) -> Iterator[Finding]:
    nodes, cards = facts.devices.get("nvidia", ()), facts.devices.get("pci:nvidia", ())
    if nodes:
        title = "the NVIDIA driver is loaded, but no GPU can be read from it"
        seen = tuple(Evidence("device", node) for node in nodes)
        yield Finding(_NAME, "warning", title, seen, "nvidia-smi  # says why; after a driver update: sudo reboot", _WHY)
    elif cards and facts.container:
        title = "an NVIDIA GPU is in this machine, but was not given to this container"
        fix = "start the container with it: docker run --gpus all …"
        yield Finding(_NAME, "note", title, _on_bus(cards), fix, _WHY)
    elif cards:
        fix = "install NVIDIA's driver with your distribution's tool (Ubuntu: sudo ubuntu-drivers install), then reboot"
        yield Finding(_NAME, "warning", "an NVIDIA GPU is present, but its driver is not", _on_bus(cards), fix, _WHY)


def _no_amd(facts: Facts) -> Iterator[Finding]:
    """The driver's cards are in sysfs, which containers see too."""
    cards = facts.devices.get("pci:amd", ())
    if cards:
        fix = "sudo modprobe amdgpu  # if that fails, install your distribution's firmware package for AMD GPUs"
        yield Finding(
            _NAME, "warning", "an AMD GPU is present, but no driver is loaded for it", _on_bus(cards), fix, _WHY
        )


def _on_bus(cards: tuple[str, ...]) -> tuple[Evidence, ...]:
    return tuple(Evidence("PCI bus", card) for card in cards)


def _old_drivers(facts: Facts, gpus: tuple[GpuFacts, ...]) -> Iterator[Finding]:
    """One finding for each old driver version, however many cards it runs."""
    places = {gpu.driver_version: place for place, gpu in reversed(list(enumerate(gpus))) if gpu.vendor == "nvidia"}
    for text, place in sorted((version, place) for version, place in places.items() if version):
        # Windows numbers drivers in four parts, which are not NVIDIA's own.
        if not re.fullmatch(r"\d{3,4}(\.\d+){1,2}", text) or (major := int(text.split(".", 1)[0])) >= _CUDA_12_DRIVER:
            continue
        names = {gpu.name or "unknown" for gpu in gpus if gpu.driver_version == text}
        seen = (
            evidence(facts, f"gpus.{place}.driver_version", text),
            evidence(facts, f"gpus.{place}.name", ", ".join(sorted(names))),
        )
        fix = f"update NVIDIA's driver to {_CUDA_12_DRIVER} or later"
        if major < _CUDA_11_DRIVER:
            title = f"the NVIDIA driver {text} is too old for current engines: the GPU stays unused"
            yield Finding(_NAME, "warning", title, seen, fix, _WHY)
        else:
            title = f"the NVIDIA driver {text} runs no CUDA 12 builds, which current engines are"
            yield Finding(_NAME, "note", title, seen, fix, _WHY)


check = Check(_NAME, "GPUs without a working driver", "warning", False, run)
