"""NVML through a module object that answers like pynvml."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from velollm.facts import GpuProcess, MigDevice
from velollm.probe.nvml import read_nvml

GIB = 1024**3


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


class FakeNvml:
    """One driver with the GPUs given as dictionaries; what a GPU lacks is NOT_SUPPORTED."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    nvmlMemory_v2 = 2  # noqa: N815

    def __init__(self, *gpus: dict[str, Any], init_error: int | None = None) -> None:
        self.gpus = gpus
        self.init_error = init_error
        self.shut_down = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise NVMLError(self.init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"590.48.01"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13010

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], place: int) -> dict[str, Any]:  # noqa: N802
        slices: list[dict[str, Any] | None] = handle["slices"]
        device = slices[place]
        if device is None:
            raise NVMLError(6)
        return device

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any], version: int | None = None) -> Any:  # noqa: N802
        if "memory" not in handle:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        assert version == 2
        return handle["memory"]

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        return f"process-{pid}"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def ask(handle: dict[str, Any]) -> Any:
            if name not in handle:
                raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
            return handle[name]

        return ask


def memory(total: int, free: int, used: int) -> SimpleNamespace:
    return SimpleNamespace(total=total, free=free, used=used)


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


CARD = {
    "nvmlDeviceGetName": "NVIDIA Card",
    "nvmlDeviceGetUUID": "GPU-1234-abcd",
    "memory": memory(80 * GIB, 60 * GIB, 19 * GIB),
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:0C:00.0", pciDeviceId=0x1E8110DE),
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetEnforcedPowerLimit": 700000,
    "nvmlDeviceGetDisplayActive": 0,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetCurrPcieLinkGeneration": 1,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetComputeRunningProcesses": [process(10, GIB), process(os.getpid(), GIB)],
    "nvmlDeviceGetGraphicsRunningProcesses": [process(10, GIB), process(11, None)],
}


def test_a_card_with_other_processes_on_it() -> None:
    module = FakeNvml(CARD)
    readings = read_nvml(module)
    assert readings is not None
    gpu = readings[0].facts
    assert (gpu.name, gpu.vram_bytes, gpu.vram_free_bytes, gpu.vram_used_bytes) == (
        "NVIDIA Card", 80 * GIB, 60 * GIB, 19 * GIB,
    )  # fmt: skip
    assert (gpu.driver_version, gpu.cuda_version, gpu.compute_capability) == ("590.48.01", "13.1", "9.0")
    assert (gpu.pci, gpu.pci_device_id, gpu.power_limit_watts) == ("0000:0C:00.0", "1E81", 700.0)
    assert (gpu.mig, gpu.mig_devices, gpu.display_active, gpu.driver_model) == (False, None, False, None)
    assert gpu.pcie is not None
    assert (gpu.pcie.gen, gpu.pcie.gen_now) == (5, 1)
    assert gpu.processes == (
        GpuProcess(pid=10, name="process-10", vram_bytes=GIB),
        GpuProcess(pid=11, name="process-11"),
    )
    assert readings[0].uuid == "GPU-1234-abcd"
    assert module.shut_down == 1


def test_slices_of_a_card_leave_free_places_out() -> None:
    one = {"nvmlDeviceGetName": "NVIDIA Card MIG 3g.40gb", "memory": memory(40 * GIB, 40 * GIB, 0)}
    card = CARD | {
        "nvmlDeviceGetMigMode": [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount": 3,
        "slices": [one, None, {"memory": memory(10 * GIB, 10 * GIB, 0)}],
    }
    readings = read_nvml(FakeNvml(card))
    assert readings is not None
    assert readings[0].facts.mig_devices == (
        MigDevice(profile="3g.40gb", vram_bytes=40 * GIB),
        MigDevice(vram_bytes=10 * GIB),
    )


def test_a_gpu_that_has_no_memory_of_its_own() -> None:
    shared = {key: value for key, value in CARD.items() if key != "memory"} | {"nvmlDeviceGetName": "NVIDIA GB10"}
    readings = read_nvml(FakeNvml(shared))
    assert readings is not None
    assert (readings[0].facts.vram_bytes, readings[0].facts.unified_memory) == (None, True)


def test_a_windows_display_card() -> None:
    readings = read_nvml(FakeNvml(CARD | {"nvmlDeviceGetCurrentDriverModel": 0, "nvmlDeviceGetDisplayActive": 1}))
    assert readings is not None
    assert (readings[0].facts.driver_model, readings[0].facts.display_active) == ("WDDM", True)


def test_no_driver_is_unknown_and_no_gpu_is_none() -> None:
    broken = FakeNvml(CARD, init_error=9)
    assert read_nvml(broken) is None
    assert broken.shut_down == 0
    assert read_nvml(FakeNvml()) == ()
