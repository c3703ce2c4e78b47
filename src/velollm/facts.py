"""What is known of a machine, its GPUs, a model and a server.

Everything here is frozen. A value that nobody could read is None, never zero and never a guess;
`Facts.sources` says for each value where it was read.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of all facts: immutable, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    board: str | None = None


class MemoryFacts(Frozen):
    """Main memory in bytes.

    ``limit_bytes`` is the cgroup's limit, ``limit_used_bytes`` what of it is taken for good (idle file
    pages left out); ``allowed_bytes`` is what the NUMA nodes of the cpuset hold, where they are not all.
    ``total_bytes`` leaves out GPU memory that the kernel counts in ``proc_meminfo_total_bytes``.
    ``approx_gib``, ``total_text`` and ``total_mib`` are rounded sizes, as a tool or log printed them.
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


class CgroupFacts(Frozen):
    """Control group of this process: ``cpu_quota`` in CPUs (1.5 = one and a half), lists in the kernel's form."""

    version: int | None = None
    mount: str | None = None
    cpuset: str | None = None
    mems: str | None = None
    cpu_quota: float | None = None
    memory_limit_bytes: int | None = None


class PowerFacts(Frozen):
    """Battery or mains."""

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
    """One GPU. ``vram_bytes`` is the card's own memory; with ``unified_memory`` None unless a carve-out is fixed."""

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
    numa_node: int | None = None
    cpu_affinity: str | None = None
    display_active: bool | None = None
    power_limit_watts: float | None = None
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


class LoadedModelFacts(Frozen):
    """A model in a server's memory. ``gpu_bytes`` is what the server counts as GPU memory.

    A machine without a GPU can count some too (a buffer for AMX), so it proves no GPU. ``keep_alive_left_s`` -1
    is for ever. ``argv`` is the command line of the engine's process that holds it.
    """

    name: str
    size_bytes: int | None = None
    gpu_bytes: int | None = None
    context_tokens: int | None = None
    slots: int | None = None
    keep_alive_left_s: int | None = None
    argv: tuple[str, ...] | None = None


class UnreadFacts(Frozen):
    """Something of a server that could not be read, why, and what would help."""

    what: str
    why: str
    help: str


class FailedLoad(Frozen):
    """A model that a server could not load, and the engine's own words for why."""

    model: str
    reason: str | None = None


class ServerActivity(Frozen):
    """What a server's log tells of its work since it started (or as far back as the log was read).

    ``overlapping_requests``: answers that surely began before an earlier one had ended, ``overlap_s`` for how long
    together. ``failures``: models whose last load failed. ``reload_gaps_s``: idle seconds before each load of a
    model that had been unloaded though nothing else had changed. ``compute``: libraries of the ``inference compute``
    lines (``cpu`` alone: no GPU was found). ``clients``: other machines that were answered.
    """

    requests: int = 0
    overlapping_requests: int = 0
    overlap_s: float = 0.0
    models: int = 0
    loads: int = 0
    failed_loads: int = 0
    failures: tuple[FailedLoad, ...] = ()
    truncated: int = 0
    longest_truncated_tokens: int | None = None
    smallest_kept_tokens: int | None = None
    reload_gaps_s: tuple[float, ...] = ()
    compute: tuple[str, ...] | None = None
    clients: tuple[str, ...] = ()


class TruncationFacts(Frozen):
    """What a server did with a prompt that was longer than its context.

    ``prompt_tokens`` by the engine's own count, ``kept_tokens`` by the reply, which had the HTTP status ``status``.
    """

    model: str
    context_tokens: int
    prompt_tokens: int
    kept_tokens: int | None = None
    status: int = 200


class ServerFacts(Frozen):
    """A running inference server and what it really runs with; or one that is installed and does not answer.

    ``generation``: what runs the models, ``runner`` or ``llama-server``. ``environment`` and ``argv`` are of the
    server's process; ``logged_environment`` is what its log says it took, defaults included. ``configured`` are
    variables by the place that sets them (a service's unit, an environment file), effective or not. ``managed``:
    ``systemd``, ``launchd``, ``container``, ``app``, ``velollm run`` or ``by hand``. ``elsewhere``: addresses where
    other servers of its kind listen. ``log``: where its log is. ``truncation`` is known only where it was tried.
    """

    engine: str | None = None
    runner: str | None = None
    version: str | None = None
    context_tokens: int | None = None
    slots: int | None = None
    flash_attention: str | None = None
    kv_type: str | None = None
    batch: int | None = None
    ubatch: int | None = None
    gpu_layers: int | None = None
    total_layers: int | None = None
    threads: int | None = None
    kv_cache_bytes: int | None = None
    url: str | None = None
    reachable: bool | None = None
    remote: bool | None = None
    generation: str | None = None
    binary: str | None = None
    pid: int | None = None
    user: str | None = None
    argv: tuple[str, ...] | None = None
    environment: Mapping[str, str] | None = None
    logged_environment: Mapping[str, str] | None = None
    configured: Mapping[str, Mapping[str, str]] | None = None
    keep_alive_s: int | None = None
    managed: str | None = None
    unit: str | None = None
    unit_state: str | None = None
    user_unit: bool | None = None
    needs_reload: bool | None = None
    listens: tuple[str, ...] | None = None
    elsewhere: tuple[str, ...] | None = None
    log: str | None = None
    models_dir: str | None = None
    installed: tuple[str, ...] | None = None
    loaded: tuple[LoadedModelFacts, ...] | None = None
    activity: ServerActivity | None = None
    truncation: TruncationFacts | None = None
    unreadable: tuple[UnreadFacts, ...] = ()


class MlaFacts(Frozen):
    """Multi-head latent attention: the compressed KV row is ``kv_lora_rank + rope_dims`` values."""

    kv_lora_rank: int
    rope_dims: int
    q_lora_rank: int | None = None


class SsmFacts(Frozen):
    """State-space (recurrent) layers of a model, GGUF ``ssm.*`` values."""

    conv_kernel: int | None = None
    inner_size: int | None = None
    state_size: int | None = None
    time_step_rank: int | None = None
    group_count: int | None = None


class ModelFacts(Frozen):
    """A model as its GGUF header describes it. Per-layer tuples have ``layers`` entries."""

    name: str
    path: str | None = None
    file_bytes: int | None = None
    architecture: str | None = None
    parameters: int | None = None
    layers: int | None = None
    embedding_length: int | None = None
    feed_forward_length: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    key_length: int | None = None
    value_length: int | None = None
    key_length_swa: int | None = None
    value_length_swa: int | None = None
    vocab: int | None = None
    context_train: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    expert_feed_forward_length: int | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    recurrent_layers: tuple[bool, ...] | None = None
    kv_shared_layers: int | None = None
    mla: MlaFacts | None = None
    ssm: SsmFacts | None = None
    mtp_layers: int | None = None
    file_type: str | None = None
    has_chat_template: bool | None = None
    tensor_bytes: int | None = None
    bytes_by_type: Mapping[str, int] = Field(default_factory=dict)


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
    container: str | None = None
    virtual_machine: bool | None = None
    wsl: bool | None = None
    unified_memory: bool | None = None
    not_metal: bool | None = None
    libraries: Mapping[str, bool] = Field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    server: ServerFacts | None = None
    logs: Mapping[str, LogFacts] | None = None
    model: ModelFacts | None = None
    sources: Mapping[str, str] = Field(default_factory=dict)
