"""How much memory a model may take, and on which devices it computes: arithmetic that several rules share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from velollm.facts import Facts, GpuFacts, MemoryFacts, ModelFacts
from velollm.knobs import KnobValue, Wish
from velollm.models.accelerators import accelerators_named, match_accelerator, merge_accelerators
from velollm.models.memory import estimate_total_bytes
from velollm.units import GIB, MIB, render_bytes

# The wheels of the embedded engine are built without a GPU backend on Linux and Windows.
_CPU_ONLY_BACKENDS = frozenset({"embedded"})

# Kept free of main memory: other programs grow.
_MARGIN_SHARE = 0.10
_MARGIN_BYTES = 512 * MIB
_MARGIN_SHARE_LIMIT = 0.25
# What llama.cpp's `--fit` leaves free on each GPU, else it moves layers away (b10488, common/common.h:473).
_FIT_TARGET_BYTES = 1024 * MIB
_FIT_TARGET_ARG = "LLAMA_ARG_FIT_TARGET"
# A driver's own structures once the engine runs (Ollama v0.33.0-rc2, ml/device.go:356, MinimumMemory).
_CONTEXT_BYTES = 457 * MIB
_METAL_CONTEXT_BYTES = 512 * MIB
# Metal's recommendedMaxWorkingSetSize, as llama.cpp prints it: 5,461 MiB of 8 GiB, 21,845 of 32 GiB, 49,152 of 64 GiB,
# 147,456 of 192 GiB.
_METAL_SHARE_SMALL, _METAL_SHARE_LARGE, _METAL_LARGE_BYTES = 2 / 3, 3 / 4, 36 * GIB
# Integrated GPUs that Ollama takes unasked beside NVIDIA's (v0.33.0-rc2, discover/runner.go:31): Radeon 8060S.
_ADMITTED_GFX, _ADMITTED_NAME = "gfx1151", "8060S"


@dataclass(frozen=True)
class Room:
    """Memory of one kind: ``available_bytes`` now, ``kept_bytes`` of it stay free, ``why`` says what for."""

    place: str
    available_bytes: int
    kept_bytes: int = 0
    why: str = ""

    @property
    def usable_bytes(self) -> int:
        """What a model may take."""
        return max(0, self.available_bytes - self.kept_bytes)


@dataclass(frozen=True)
class Machine:
    """Where a model may be: the GPUs that the engine uses, roomiest first, and main memory (None: unknown).

    ``shared``: the GPU's memory is main memory. ``lacked``: facts without which this is not known. The two bandwidths
    (of the slowest GPU, and of main memory) are None where nothing tells them.
    """

    cards: tuple[Room, ...]
    main: Room | None
    shared: bool = False
    lacked: tuple[str, ...] = ()
    card_bytes_per_s: int | None = None
    main_bytes_per_s: int | None = None


def machine_of(facts: Facts, wish: Wish) -> Machine:
    """The devices of this machine as the engine would use them. The order in which GPUs are listed is of no matter."""
    main = main_memory(facts, wish)
    lacked = () if main else ("memory.available_bytes",)
    gpus = used_gpus(facts, wish)
    if gpus is None:
        return Machine((), main, lacked=("gpus", *lacked))
    if not gpus:
        return Machine((), main, lacked=lacked)
    speeds = _card_speed(gpus, facts), facts.memory.bandwidth_bytes_per_s if facts.memory else None
    if gpus[0].integrated or gpus[0].unified_memory:
        card = _shared_memory(gpus[0], facts, main)
        return Machine((card,) if card else (), main, True, lacked, *speeds)
    rooms = [room for gpu in gpus if (room := _card_memory(gpu, facts, wish, len(gpus))) is not None]
    if not rooms:
        return Machine((), main, lacked=("gpus.vram_bytes", *lacked))
    return Machine(tuple(sorted(rooms, key=lambda room: -room.usable_bytes)), main, False, lacked, *speeds)


def _card_speed(gpus: Iterable[GpuFacts], facts: Facts) -> int | None:
    """Memory bandwidth of the slowest of these GPUs in bytes a second; None where one is unknown."""
    total = facts.memory.total_bytes if facts.memory else None
    speeds = [gpu.memory_bandwidth_bytes_per_s or _table_speed(gpu, total) for gpu in gpus]
    return min((speed for speed in speeds if speed), default=None) if all(speeds) else None


def _table_speed(gpu: GpuFacts, total_bytes: int | None) -> int | None:
    """What the table says of a GPU, by the name that its driver reports or that a person gave."""
    row = match_accelerator(gpu, unified_bytes=total_bytes)
    if row is None:
        row = merge_accelerators(accelerators_named(gpu.name or "", memory_bytes=gpu.vram_bytes))
    return None if row is None else row.memory_bandwidth_bytes_per_s


def as_idle(facts: Facts) -> Facts:
    """A described machine with all of its main memory available: nobody said that anything else runs there."""
    memory = facts.memory
    if memory is None or memory.available_bytes is not None or memory.total_bytes is None:
        return facts
    sources = {**facts.sources, "memory.available_bytes": "all of it: nothing else is said to run there"}
    memory = memory.model_copy(update={"available_bytes": memory.total_bytes})
    return facts.model_copy(update={"memory": memory, "sources": sources})


def used_gpus(facts: Facts, wish: Wish) -> tuple[GpuFacts, ...] | None:
    """The GPUs that the engine computes on, of one vendor; empty where it computes on the CPU, None where unknown.

    Ollama leaves out an integrated GPU unless it is NVIDIA's, Apple's or one AMD part, or OLLAMA_IGPU_ENABLE is set
    (discover/runner.go:385-435), and shares a model among GPUs of one library only (server/sched.go, groups).
    """
    if wish.backend in _CPU_ONLY_BACKENDS and facts.os != "macos":
        return ()
    if facts.gpus is None:
        unified = facts.os == "macos" and facts.unified_memory
        return (GpuFacts(vendor="apple", integrated=True, unified_memory=True),) if unified else None
    own = tuple(gpu for gpu in facts.gpus if not gpu.integrated and not gpu.unified_memory)
    if own:
        return max(
            _by_vendor(own), key=lambda group: (sum(_free_bytes(gpu) or 0 for gpu in group), str(group[0].vendor))
        )
    return tuple(gpu for gpu in facts.gpus if _admitted(gpu, facts))[:1]


def _free_together(gpus: tuple[GpuFacts, ...]) -> tuple[int, str]:
    return sum(_free_bytes(gpu) or 0 for gpu in gpus), str(gpus[0].vendor)


def _by_vendor(gpus: Iterable[GpuFacts]) -> list[tuple[GpuFacts, ...]]:
    groups: dict[str | None, tuple[GpuFacts, ...]] = {}
    for gpu in gpus:
        groups[gpu.vendor] = (*groups.get(gpu.vendor, ()), gpu)
    return list(groups.values())


def _admitted(gpu: GpuFacts, facts: Facts) -> bool:
    """Does the engine use this integrated GPU?"""
    enabled = (_variable(facts, "OLLAMA_IGPU_ENABLE") or "").lower()
    if enabled in ("1", "t", "true"):
        return True
    if enabled in ("0", "f", "false"):
        return gpu.vendor == "apple"
    if gpu.vendor in ("apple", "nvidia"):
        return True
    names = (gpu.name, facts.cpu.model_name if facts.cpu else None)
    return gpu.gfx == _ADMITTED_GFX or any(_ADMITTED_NAME in str(name) for name in names)


def computes_on_cpu(facts: Facts, wish: Wish) -> bool | None:
    """Will the engine compute on the CPU alone? None where the GPUs are unknown."""
    gpus = used_gpus(facts, wish)
    return None if gpus is None else not gpus


def main_memory(facts: Facts, wish: Wish) -> Room | None:
    """Main memory that may still be taken: the least of what is available, what the limit leaves, and the NUMA nodes.

    A limit without a known use counts whole. What the server's own models hold counts as free, because they make
    room. A tenth and 512 MiB, a quarter at most, stay free for other programs. None where neither what is available
    nor a limit is known.
    """
    memory = facts.memory
    if memory is None:
        return None
    held = sum(total - gpu for total, gpu in _held(facts, wish))
    known = [value + held for value in (memory.available_bytes, _limit_left(memory)) if value is not None]
    if not known:
        return None
    known += [most for most in (memory.allowed_bytes, memory.total_bytes) if most is not None]
    available = min(known)
    kept = round(min(available * _MARGIN_SHARE + _MARGIN_BYTES, available * _MARGIN_SHARE_LIMIT))
    return Room("main memory", available, kept, f"{render_bytes(kept)} stay free for other programs")


def _limit_left(memory: MemoryFacts) -> int | None:
    if memory.limit_bytes is None:
        return None
    return max(0, memory.limit_bytes - (memory.limit_used_bytes or 0))


def _held(facts: Facts, wish: Wish) -> list[tuple[int, int]]:
    """Bytes in all and on GPUs that each model in the server's memory holds."""
    if facts.server is None or facts.server.engine != wish.backend or facts.server.remote:
        return []
    return [(model.size_bytes or 0, model.gpu_bytes or 0) for model in facts.server.loaded or ()]


def _card_memory(gpu: GpuFacts, facts: Facts, wish: Wish, count: int) -> Room | None:
    """Memory of a card of its own (of one in slices the largest slice); None where it is unknown.

    A card whose free memory is unknown counts with all of it.
    """
    free = _free_bytes(gpu)
    if free is None:
        return None
    if count == 1 and not gpu.mig:
        held = sum(on_gpu for _, on_gpu in _held(facts, wish))
        free = min(free + held, gpu.vram_bytes or free + held)
    target = fit_target_bytes(facts)
    why = f"{render_bytes(target)} stay free for the engine's --fit, {render_bytes(_CONTEXT_BYTES)} for the driver"
    return Room("GPU memory", free, target + _CONTEXT_BYTES, why)


def _free_bytes(gpu: GpuFacts) -> int | None:
    if gpu.mig:
        return gpu.largest_usable_bytes
    if gpu.vram_free_bytes is not None:
        return gpu.vram_free_bytes
    if gpu.vram_bytes is None:
        return None
    return gpu.vram_bytes - (gpu.vram_used_bytes or 0)


def _shared_memory(gpu: GpuFacts, facts: Facts, main: Room | None) -> Room | None:
    """What a GPU without memory of its own may take of main memory; None where main memory is unknown."""
    if main is None:
        return None
    target = fit_target_bytes(facts)
    total = facts.memory.total_bytes if facts.memory else None
    if gpu.vendor == "apple":
        limit = gpu.largest_usable_bytes or (None if total is None else _metal_limit(total))
        what, context = "Metal", _METAL_CONTEXT_BYTES
    else:
        limit, what, context = gpu.gtt_limit_bytes or gpu.shared_pool_bytes, "the driver", _CONTEXT_BYTES
    available = main.available_bytes if limit is None else min(limit, main.available_bytes)
    why = f"{render_bytes(target)} stay free for the engine's --fit, {render_bytes(context)} for {what}"
    return Room("GPU memory", available, target + context, why)


def _metal_limit(total_bytes: int) -> int:
    """The part of a Mac's memory that Metal may use, where nobody set ``iogpu.wired_limit_mb``."""
    return round(total_bytes * (_METAL_SHARE_LARGE if total_bytes >= _METAL_LARGE_BYTES else _METAL_SHARE_SMALL))


def fit_target_bytes(facts: Facts) -> int:
    """What `--fit` keeps free on each GPU: LLAMA_ARG_FIT_TARGET (MiB, the largest of a list), else 1 GiB."""
    text = _variable(facts, _FIT_TARGET_ARG) or ""
    sizes = [int(part) for part in text.replace(" ", "").split(",") if part.isdecimal()]
    return max(sizes) * MIB if sizes else _FIT_TARGET_BYTES


def _variable(facts: Facts, name: str) -> str | None:
    """A variable of the server's environment; what its log tells counts where the process cannot be read."""
    if facts.server is None:
        return None
    for source in (facts.server.environment, facts.server.logged_environment):
        if source is not None and name in source:
            return source[name]
    return None


def weight_bytes(model: ModelFacts) -> int | None:
    """Bytes of a model's tensors, or of its file where those are unknown (a few MiB more)."""
    return model.tensor_bytes if model.tensor_bytes is not None else model.file_bytes


def needed_bytes(model: ModelFacts, knobs: Mapping[str, KnobValue]) -> int | None:
    """Estimated memory of the model under these knobs; None where its shape is not known well enough."""
    # What is mapped twice can be dropped, so it is not needed.
    return estimate_total_bytes(model, {**knobs, "load_mode": "none"})


def lacking_shape(model: ModelFacts) -> tuple[str, ...]:
    """Names of the facts that a memory estimate needs and this model does not tell.

    With all of them there, it is the architecture whose cache cannot be worked out.
    """
    names = (
        *("layers", "embedding_length", "vocab", "heads", "kv_heads"),
        *("key_length", "value_length", "recurrent_layers"),
    )
    lacked = [f"model.{name}" for name in names if getattr(model, name) is None]
    if weight_bytes(model) is None:
        lacked.append("model.tensor_bytes")
    return tuple(lacked) or ("model.architecture",)
