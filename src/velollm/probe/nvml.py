"""NVIDIA's own library (NVML) through nvidia-ml-py, module ``pynvml``."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any

from velollm.facts import GpuFacts, GpuProcess, MigDevice, PcieFacts
from velollm.probe.nvidia_xml import device_half
from velollm.probe.reading import Reading, real_uuid, short_pci

SOURCE = "NVML"
_MIG_PROFILE = re.compile(r"MIG (\S+)")
# nvmlDriverModel_t in nvml.h; Linux has no driver model and answers NOT_SUPPORTED.
_DRIVER_MODELS = {0: "WDDM", 1: "TCC", 2: "MCDM"}


# nvml.h, nvmlClocksEventReasons: what NVIDIA's tools call them.
_THROTTLE = {0x20: "SW Thermal Slowdown", 0x40: "HW Thermal Slowdown", 0x80: "HW Power Brake Slowdown"}


def load_nvml() -> Any | None:
    """The ``pynvml`` module, or None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


class _Nvml:
    """Calls that answer None where the driver or this version of the library cannot."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def ask(self, name: str, *args: Any) -> Any:
        function: Callable[..., Any] | None = getattr(self.module, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self.module.NVMLError:
            return None

    def refused(self, name: str, *args: Any) -> bool:
        """Does the driver say that this GPU has no such thing (NOT_SUPPORTED)?"""
        try:
            getattr(self.module, name)(*args)
        except self.module.NVMLError as error:
            return bool(error.value == self.module.NVML_ERROR_NOT_SUPPORTED)
        return False


def read_nvml(module: Any | None = None) -> tuple[Reading, ...] | None:
    """All GPUs that the NVIDIA driver offers to this process; () where it has none.

    None where there is no library or no driver that answers. ``module`` stands in for ``pynvml`` in tests.
    """
    module = module or load_nvml()
    if module is None:
        return None
    try:
        module.nvmlInit()
    except module.NVMLError:
        return None
    try:
        return _read_all(_Nvml(module))
    finally:
        _Nvml(module).ask("nvmlShutdown")


def _read_all(nvml: _Nvml) -> tuple[Reading, ...] | None:
    count = nvml.ask("nvmlDeviceGetCount")
    if count is None:
        return None
    driver = _text(nvml.ask("nvmlSystemGetDriverVersion"))
    cuda = _cuda_version(nvml.ask("nvmlSystemGetCudaDriverVersion"))
    handles = [(index, nvml.ask("nvmlDeviceGetHandleByIndex", index)) for index in range(count)]
    return tuple(_reading(nvml, index, handle, driver, cuda) for index, handle in handles if handle is not None)


def _text(value: str | bytes | None) -> str | None:
    """Releases of the library before 11.5 answered with bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cuda_version(value: int | None) -> str | None:
    """``13.1`` of 13010: major * 1000 + minor * 10 (nvml.h, nvmlSystemGetCudaDriverVersion)."""
    return f"{value // 1000}.{value % 1000 // 10}" if value else None


def _memory(nvml: _Nvml, handle: Any) -> Any:
    """Memory of a device; version 2 keeps what the driver reserves out of ``used``, as nvidia-smi does."""
    version = getattr(nvml.module, "nvmlMemory_v2", None)
    second = None if version is None else nvml.ask("nvmlDeviceGetMemoryInfo", handle, version)
    return second if second is not None else nvml.ask("nvmlDeviceGetMemoryInfo", handle)


def _reading(nvml: _Nvml, index: int, handle: Any, driver: str | None, cuda: str | None) -> Reading:
    memory = _memory(nvml, handle)
    pci = nvml.ask("nvmlDeviceGetPciInfo", handle)
    capability = nvml.ask("nvmlDeviceGetCudaComputeCapability", handle)
    mig = nvml.ask("nvmlDeviceGetMigMode", handle)
    watts = nvml.ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    display = nvml.ask("nvmlDeviceGetDisplayActive", handle)
    model = nvml.ask("nvmlDeviceGetCurrentDriverModel", handle)
    facts = GpuFacts(
        vendor="nvidia",
        name=_text(nvml.ask("nvmlDeviceGetName", handle)),
        vram_bytes=memory.total if memory else None,
        vram_free_bytes=memory.free if memory else None,
        vram_used_bytes=memory.used if memory else None,
        unified_memory=True if memory is None and nvml.refused("nvmlDeviceGetMemoryInfo", handle) else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        driver_version=driver,
        driver_model=_DRIVER_MODELS.get(model) if model is not None else None,
        cuda_version=cuda,
        mig=bool(mig[0]) if mig else None,
        mig_devices=_mig_devices(nvml, handle) if mig and mig[0] else None,
        pcie=_pcie(nvml, handle),
        pci=short_pci(_text(pci.busId)) if pci else None,
        pci_device_id=device_half(f"{pci.pciDeviceId:08X}") if pci else None,
        display_active=None if display is None else bool(display),
        power_limit_watts=watts / 1000 if watts else None,
        throttle_reasons=_throttle_reasons(nvml, handle),
        processes=_processes(nvml, handle),
    )
    return Reading(facts, SOURCE, index, real_uuid(_text(nvml.ask("nvmlDeviceGetUUID", handle))))


def _throttle_reasons(nvml: _Nvml, handle: Any) -> tuple[str, ...] | None:
    """What of heat and power holds the clock down at this moment; () where nothing does."""
    mask = nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if mask is None:
        mask = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return None if mask is None else tuple(word for bit, word in _THROTTLE.items() if mask & bit)


def _pcie(nvml: _Nvml, handle: Any) -> PcieFacts | None:
    pcie = PcieFacts(
        gen=nvml.ask("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        width=nvml.ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
        gen_now=nvml.ask("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        width_now=nvml.ask("nvmlDeviceGetCurrPcieLinkWidth", handle),
    )
    return None if pcie == PcieFacts() else pcie


def _mig_devices(nvml: _Nvml, handle: Any) -> tuple[MigDevice, ...] | None:
    count = nvml.ask("nvmlDeviceGetMaxMigDeviceCount", handle)
    if count is None:
        return None
    found = []
    for place in range(count):
        device = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        if device is None:  # NOT_FOUND: the place is free
            continue
        profile = _MIG_PROFILE.search(_text(nvml.ask("nvmlDeviceGetName", device)) or "")
        memory = _memory(nvml, device)
        found.append(
            MigDevice(profile=profile.group(1) if profile else None, vram_bytes=memory.total if memory else None)
        )
    return tuple(found)


def _processes(nvml: _Nvml, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Other processes on the GPU, each once; memory is None under WDDM, which does not tell it."""
    answers = [
        nvml.ask("nvmlDeviceGetComputeRunningProcesses", handle),
        nvml.ask("nvmlDeviceGetGraphicsRunningProcesses", handle),
    ]
    if all(answer is None for answer in answers):
        return None
    found: dict[int, GpuProcess] = {}
    for entry in [entry for answer in answers for entry in answer or ()]:
        if entry.pid == os.getpid():
            continue
        name = _text(nvml.ask("nvmlSystemGetProcessName", entry.pid))
        found.setdefault(entry.pid, GpuProcess(pid=entry.pid, name=name, vram_bytes=entry.usedGpuMemory))
    return tuple(found.values())
