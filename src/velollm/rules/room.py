"""How much memory a model may take, and on which device it computes: arithmetic that several rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from velollm.facts import Facts, GpuFacts, MemoryFacts, ModelFacts
from velollm.knobs import KnobValue, Wish
from velollm.models.memory import estimate_total_bytes
from velollm.units import MIB

# The wheels of the embedded engine are built without a GPU backend on Linux and Windows.
_CPU_ONLY_BACKENDS = frozenset({"embedded"})

# Kept free of what is available: other programs grow, and estimates of compute buffers are rough.
_MARGIN_SHARE = 0.10
_MARGIN_BYTES = 512 * MIB
_MARGIN_SHARE_LIMIT = 0.25


@dataclass(frozen=True)
class Room:
    """Memory of one kind: ``available_bytes`` now, ``usable_bytes`` of it after the margin."""

    place: str
    available_bytes: int

    @property
    def usable_bytes(self) -> int:
        """Available less a tenth and 512 MiB, but less a quarter at most."""
        margin = min(self.available_bytes * _MARGIN_SHARE + _MARGIN_BYTES, self.available_bytes * _MARGIN_SHARE_LIMIT)
        return self.available_bytes - round(margin)


def computes_on_cpu(facts: Facts, wish: Wish) -> bool | None:
    """Will the engine compute on the CPU alone? None where the GPUs are unknown."""
    if wish.backend in _CPU_ONLY_BACKENDS and facts.os != "macos":
        return True
    return None if facts.gpus is None else not facts.gpus


def main_memory(memory: MemoryFacts | None) -> Room | None:
    """Main memory that may still be taken: the least of what is available, what the limit leaves, and the NUMA nodes.

    A limit without a known use counts whole. None where neither what is available nor a limit is known.
    """
    if memory is None:
        return None
    limit = memory.limit_bytes
    rest = None if limit is None else max(0, limit - (memory.limit_used_bytes or 0))
    known = [value for value in (memory.available_bytes, rest) if value is not None]
    if not known:
        return None
    if memory.allowed_bytes is not None:
        known.append(memory.allowed_bytes)
    return Room("main memory", min(known))


def cards(facts: Facts) -> tuple[GpuFacts, ...]:
    """GPUs with memory of their own."""
    return tuple(gpu for gpu in facts.gpus or () if not gpu.integrated and not gpu.unified_memory)


def card_memory(facts: Facts) -> Room | None:
    """Free memory of the card (or MIG slice) that has most; never a sum, as splitting a model costs speed.

    None where no card's memory is known. A card whose free memory is unknown counts with all of it.
    """
    sizes = [size for gpu in cards(facts) if (size := _free_bytes(gpu)) is not None]
    return Room("GPU memory", max(sizes)) if sizes else None


def _free_bytes(gpu: GpuFacts) -> int | None:
    if gpu.mig:
        return gpu.largest_usable_bytes
    if gpu.vram_free_bytes is not None:
        return gpu.vram_free_bytes
    if gpu.vram_bytes is None:
        return None
    return gpu.vram_bytes - (gpu.vram_used_bytes or 0)


def rooms(facts: Facts, wish: Wish) -> tuple[tuple[Room, ...], tuple[str, ...]]:
    """Places that could hold the model, best first, and the facts that were lacking to know them."""
    found: list[Room] = []
    lacked: list[str] = []
    if cards(facts) and not computes_on_cpu(facts, wish):
        card = card_memory(facts)
        if card is None:
            return (), ("gpus.vram_bytes",)
        found.append(card)
    memory = main_memory(facts.memory)
    if memory is None:
        lacked.append("memory.available_bytes")
    else:
        found.append(memory)
    return tuple(found), tuple(lacked)


def weight_bytes(model: ModelFacts) -> int | None:
    """Bytes of a model's tensors, or of its file where those are unknown (a few MiB more)."""
    return model.tensor_bytes if model.tensor_bytes is not None else model.file_bytes


def needed_bytes(model: ModelFacts, knobs: Mapping[str, KnobValue]) -> int | None:
    """Estimated memory of the model under these knobs; None where its shape is not known well enough."""
    return estimate_total_bytes(model, knobs)


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
