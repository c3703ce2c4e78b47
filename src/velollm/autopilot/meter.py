"""The machine as a comparison sees it between rounds: energy, memory on GPUs, load by others, heat, swap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import psutil

from velollm.bench.conditions import Conditions, Energy
from velollm.probe.live import LoadSample, busy_shares, read_load_sample
from velollm.probe.nvml import load_nvml
from velollm.probe.power import read_power
from velollm.probe.source import LiveSource, Source
from velollm.probe.texts import parse_int

_RAPL = "/sys/class/powercap/intel-rapl:[0-9]*/name"
_THROTTLE = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
# nvml.h, nvmlClocksEventReasons: hardware slowdown, software thermal, hardware thermal, hardware power brake.
_SLOWED = 0x08 | 0x20 | 0x40 | 0x80


class MachineMeter:
    """The machine that this runs on.

    ``own_servers``: the servers are children of this process, so that what they take is not counted to others; else
    the load by others cannot be told from theirs, and is unknown.
    """

    def __init__(self, *, own_servers: bool = True, source: Source | None = None, nvml: Any | None = None) -> None:
        self._source = source or LiveSource()
        self._own_servers = own_servers
        self._before: LoadSample | None = None
        self._nvml = nvml or load_nvml()
        self._gpus = _open_gpus(self._nvml)

    def energy(self) -> Energy | None:
        """Joules so far of all that has a counter: NVIDIA GPUs, and the processor's packages where they may be read."""
        parts = {"GPU (NVML)": self._gpu_joules(), "processor (RAPL)": read_rapl_joules(self._source)}
        known = {name: joules for name, joules in parts.items() if joules is not None}
        return Energy(sum(known.values()), " + ".join(known)) if known else None

    def _gpu_joules(self) -> float | None:
        """NVML counts millijoules since the driver was loaded, from Volta on (nvml.h)."""
        counts = [self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu) for gpu in self._gpus]
        known = [count for count in counts if count is not None]
        return sum(known) / 1000 if known else None

    def gpu_bytes(self, pids: Sequence[int]) -> int | None:
        """What these processes and those below them hold on NVIDIA GPUs."""
        if not self._gpus or not pids:
            return None
        family = {member for pid in pids for member in _family(pid)}
        held = [
            entry.usedGpuMemory
            for gpu in self._gpus
            for entry in self._ask("nvmlDeviceGetComputeRunningProcesses", gpu) or ()
            if entry.pid in family and entry.usedGpuMemory is not None
        ]
        return sum(held) if held else None

    def look(self) -> Conditions:
        """How the machine is now, and how busy others kept it since the last look."""
        reasons = [self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu) for gpu in self._gpus]
        known = [reason for reason in reasons if reason is not None]
        return Conditions(
            busy_cores=self._busy_cores() if self._own_servers else None,
            swapped_bytes=read_swapped_bytes(self._source),
            throttles=read_throttles(self._source),
            gpu_throttled=any(reason & _SLOWED for reason in known) if known else None,
            on_battery=read_power(self._source).values.get("on_battery"),
        )

    def _busy_cores(self) -> float | None:
        before, self._before = self._before, read_load_sample(self._source, os.getpid())
        shares = busy_shares(before, self._before) if before is not None and self._before is not None else None
        return None if shares is None else round(shares[0], 3)

    def _ask(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._nvml, name, None)
        if function is None or self._nvml is None:
            return None
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def read_rapl_joules(source: Source) -> float | None:
    """Energy of all processor packages so far; None where there is no counter, or only root may read it.

    Microjoules, which begin anew above `max_energy_range_uj` (kernel: Documentation/power/powercap): a span in which
    that happened comes out negative, and counts as unknown.
    """
    names = [path for path in source.glob(_RAPL) if (source.read(path) or "").startswith("package")]
    found = [parse_int(source.read(path.removesuffix("name") + "energy_uj")) for path in names]
    known = [count for count in found if count is not None]
    return sum(known) / 1e6 if known and len(known) == len(found) else None


def read_swapped_bytes(source: Source) -> int | None:
    """Bytes moved to and from swap since the machine started; None where it does not tell."""
    counts = dict(line.split()[:2] for line in (source.read("/proc/vmstat") or "").splitlines() if " " in line)
    pages = [parse_int(counts.get(name)) for name in ("pswpin", "pswpout")]
    if None not in pages:
        return sum(page or 0 for page in pages) * os.sysconf("SC_PAGE_SIZE")
    if not source.live:
        return None
    swap = psutil.swap_memory()
    return int(swap.sin + swap.sout)


def read_throttles(source: Source) -> int | None:
    """How often cores were slowed down for heat since the machine started; None where it does not tell."""
    counts = [parse_int(source.read(path)) for path in source.glob(_THROTTLE)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _open_gpus(nvml: Any | None) -> tuple[Any, ...]:
    if nvml is None:
        return ()
    try:
        nvml.nvmlInit()
        return tuple(nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:
        return ()


def _family(pid: int) -> set[int]:
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return {pid}
