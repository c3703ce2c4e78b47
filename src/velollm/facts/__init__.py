"""What is known of a machine, its GPUs, a model and a server.

Everything here is frozen. A value that nobody could read is None, never zero and never a guess;
`Facts.sources` says for each value where it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from velollm.facts.base import Frozen
from velollm.facts.model import MadeFacts, MlaFacts, ModelFacts, PartFacts, ProjectorFacts, SsmFacts
from velollm.facts.server import (
    EngineFacts,
    FailedLoad,
    GuessingFacts,
    InstalledModelFacts,
    LoadedModelFacts,
    OptionReload,
    ServerActivity,
    ServerFacts,
    StorageFacts,
    TruncationFacts,
    UnreadFacts,
)

__all__ = [
    "CgroupFacts",
    "CpuFacts",
    "EngineFacts",
    "Facts",
    "FailedLoad",
    "Frozen",
    "GpuFacts",
    "GpuProcess",
    "GuessingFacts",
    "InstalledModelFacts",
    "KernelFacts",
    "LoadFacts",
    "LoadedModelFacts",
    "LogFacts",
    "LogGpu",
    "MadeFacts",
    "MemoryFacts",
    "MigDevice",
    "MlaFacts",
    "ModelFacts",
    "OptionReload",
    "PartFacts",
    "PastFlight",
    "PastGuess",
    "PcieFacts",
    "PowerFacts",
    "ProjectorFacts",
    "ServerActivity",
    "ServerFacts",
    "SsmFacts",
    "StorageFacts",
    "ThermalFacts",
    "TruncationFacts",
    "UnreadFacts",
]


class CpuFacts(Frozen):
    """Processor and what of it this process may use.

    ``usable_cores``: hardware threads that are online, inside the cpuset and the affinity mask, cut
    by the whole part of the CPU quota, at least 1; ``usable_physical_cores``: the same in cores.
    CPU lists are in the kernel's form (``0-3,8``).
    """

    model_name: str | tuple[str, ...] | None = None
    architecture: str | None = None
    sockets: int | None = None
    numa_nodes: int | None = None
    physical_cores: int | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    logical_cores: int | None = None
    online_cores: int | None = None
    online_physical_cores: int | None = None
    usable_cores: int | None = None
    usable_physical_cores: int | None = None
    threads_per_core: int | None = None
    performance_cpus: str | None = None
    efficiency_cpus: str | None = None
    affinity: str | None = None
    isa: tuple[str, ...] | None = None
    governor: str | None = None
    governor_driver: str | None = None
    energy_preference: str | None = None
    board: str | None = None


class MemoryFacts(Frozen):
    """Main memory in bytes.

    ``limit_bytes`` is the cgroup's limit, ``limit_used_bytes`` what of it is taken for good (idle file
    pages left out); ``allowed_bytes`` is what the NUMA nodes of the cpuset hold, where they are not all.
    ``total_bytes`` leaves out GPU memory that the kernel counts in ``proc_meminfo_total_bytes``.
    ``approx_gib``, ``total_text`` and ``total_mib`` are rounded sizes, as a tool or log printed them.
    ``bandwidth_bytes_per_s``: what it can be read at.
    """

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    limit_used_bytes: int | None = None
    allowed_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    proc_meminfo_total_bytes: int | None = None
    approx_gib: float | None = None
    host_approx_gb: float | None = None
    total_text: str | None = None
    total_mib: int | None = None
    bandwidth_bytes_per_s: int | None = None


class CgroupFacts(Frozen):
    """Control group of this process: ``cpu_quota`` in CPUs (1.5 = one and a half), lists in the kernel's form."""

    version: int | None = None
    mount: str | None = None
    cpuset: str | None = None
    mems: str | None = None
    cpu_quota: float | None = None
    memory_limit_bytes: int | None = None


class PowerFacts(Frozen):
    """Battery or mains. ``profile``: the machine's power mode (``low-power``, ``balanced``, ``performance`` …)."""

    profile: str | None = None
    on_battery: bool | None = None
    battery_percent: float | None = None
    battery_health_percent: float | None = None
    status: str | None = None
    draw_watts: float | None = None


class ThermalFacts(Frozen):
    """Has the processor been slowed down by heat since the machine started?"""

    throttled_since_boot: bool | None = None


class LoadFacts(Frozen):
    """How busy others are. ``busy_cores_now``: cores' worth of CPU time that others took while sampled.

    ``busy_per_cpu`` gives the share (0 to 1) for each sampled hardware thread; ``load_15m`` is the
    kernel's 15-minute load average. Our own process and its children are left out of the sample.
    """

    busy_cores_now: float | None = None
    busy_per_cpu: tuple[float, ...] | None = None
    sampled_s: float | None = None
    load_1m: float | None = None
    load_15m: float | None = None


class PcieFacts(Frozen):
    """PCI Express link as it can be at best: generation and lanes; ``*_now`` as it runs at the moment."""

    gen: int | None = None
    width: int | None = None
    gen_now: int | None = None
    width_now: int | None = None


class MigDevice(Frozen):
    """One slice of an NVIDIA GPU in MIG mode."""

    profile: str | None = None
    vram_bytes: int | None = None


class GpuProcess(Frozen):
    """Another process that holds memory on a GPU."""

    pid: int
    name: str | None = None
    vram_bytes: int | None = None


class GpuFacts(Frozen):
    """One GPU. ``vram_bytes`` is the card's own memory; with ``unified_memory`` None unless a carve-out is fixed.

    ``spilled_bytes``: GPU memory that Windows keeps in main memory. ``throttle_reasons``: why its clock is held down
    now.
    """

    vendor: str | None = None
    name: str | None = None
    vram_bytes: int | None = None
    vram_free_bytes: int | None = None
    vram_used_bytes: int | None = None
    integrated: bool | None = None
    unified_memory: bool | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    driver_model: str | None = None
    cuda_version: str | None = None
    gfx: str | None = None
    metal: str | None = None
    gpu_cores: int | None = None
    mig: bool | None = None
    mig_devices: tuple[MigDevice, ...] | None = None
    largest_usable_bytes: int | None = None
    gtt_limit_bytes: int | None = None
    shared_pool_bytes: int | None = None
    pcie: PcieFacts | None = None
    pci: str | None = None
    pci_device_id: str | None = None
    spilled_bytes: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    numa_node: int | None = None
    cpu_affinity: str | None = None
    display_active: bool | None = None
    power_limit_watts: float | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    processes: tuple[GpuProcess, ...] | None = None


class LogGpu(Frozen):
    """A GPU as a server's log names it; sizes as printed there."""

    name: str | None = None
    library: str | None = None
    compute: str | None = None
    driver: str | None = None
    variant: str | None = None
    gfx: str | None = None
    total: str | None = None
    available: str | None = None
    os_overhead: str | None = None
    integrated: bool | None = None
    is_budget_not_memory: bool | None = None


class LogFacts(Frozen):
    """What one log of an Ollama server tells."""

    version: str | None = None
    os: str | None = None
    port: int | None = None
    cpu: CpuFacts | None = None
    gpus: tuple[LogGpu, ...] | None = None
    total_vram: str | None = None
    memory: str | None = None
    default_num_ctx: int | None = None


class KernelFacts(Frozen):
    """What the kernel's log tells since the machine started: how often it woke up again, and GPUs that it lost."""

    resumes: int | None = None
    gpu_errors: tuple[str, ...] = ()
    numa_balancing: bool | None = None


class PastGuess(Frozen):
    """A gain that guessing ahead was measured to have: decode with it by decode without, all else alike.

    ``acceptance`` was seen meanwhile, with ``drafted_per_pass`` tokens guessed for each pass of the model.
    """

    when: str
    model: str
    kind: str
    gain: float
    acceptance: float
    drafted_per_pass: float

    @property
    def break_even(self) -> float | None:
        """The share accepted that just pays: a pass then cost (1 + n·a)/gain passes without, and must give as much."""
        if self.gain <= 0 or self.drafted_per_pass <= 0:
            return None
        cost = (1 + self.drafted_per_pass * self.acceptance) / self.gain
        return max(0.0, (cost - 1) / self.drafted_per_pass)


class PastFlight(Frozen):
    """The machine as it was when it was last measured or changed; ``when``: UTC, ISO 8601.

    ``guesses``: the newest measured gain of each kind of guessing, for each model.
    """

    when: str
    memory_bytes: int | None = None
    cpu: str | None = None
    gpus: tuple[str, ...] | None = None
    gpu_drivers: tuple[str, ...] | None = None
    engine_version: str | None = None
    guesses: tuple[PastGuess, ...] = ()


class Facts(Frozen):
    """Everything that is known, and where each value was read (``sources``: path of the fact to place)."""

    os: str | None = None
    cpu: CpuFacts | None = None
    memory: MemoryFacts | None = None
    cgroup: CgroupFacts | None = None
    power: PowerFacts | None = None
    thermal: ThermalFacts | None = None
    load: LoadFacts | None = None
    gpus: tuple[GpuFacts, ...] | None = None
    gpus_attached: int | None = None
    kernel: KernelFacts | None = None
    past: PastFlight | None = None
    container: str | None = None
    virtual_machine: bool | None = None
    wsl: bool | None = None
    unified_memory: bool | None = None
    not_metal: bool | None = None
    libraries: Mapping[str, bool] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    server: ServerFacts | None = None
    logs: Mapping[str, LogFacts] | None = None
    model: ModelFacts | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
