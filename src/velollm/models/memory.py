"""Memory that a loaded model takes, on each device: weights, KV cache and recurrent state, buffers of a computation.

Arithmetic from metadata alone, term by term as llama.cpp b10488 computes it. Not counted: the engine's own program and
stacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from velollm.facts import ModelFacts
from velollm.knobs import Basis, Knobs
from velollm.models.memory_cache import cache_size, kv_layer_bytes, state_layer_bytes
from velollm.models.memory_compute import compute_bytes, output_bytes, worst_step
from velollm.models.memory_weights import CPU, WeightBytes, estimate_weights, place

__all__ = [
    "CPU",
    "DEFAULT_UBATCH",
    "DeviceMemory",
    "Engine",
    "MemoryEstimate",
    "estimate_memory",
    "estimate_total_bytes",
]

# common/common.h of llama.cpp, n_ubatch and n_batch.
DEFAULT_UBATCH = 512
_DEFAULT_BATCH = 2048
# What an x86 processor with AVX2 repacks (ggml/src/ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type).
AVX2_REPACKS = frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4"})


@dataclass(frozen=True)
class Engine:
    """What of an engine's build and processor decides about memory: the number formats that its CPU part repacks."""

    repacks: frozenset[str] = AVX2_REPACKS


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes by purpose on one device: ``CPU`` (main memory) or a GPU, by the name that was given.

    ``weights_bytes`` are as in the file (mapped or read), ``repack_bytes`` the copy that suits the processor.
    ``draft_bytes``: all that a draft model takes there.
    """

    device: str
    weights_bytes: int = 0
    repack_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    draft_bytes: int = 0
    basis: Basis = "arithmetic"

    @property
    def total_bytes(self) -> int:
        """Everything on this device."""
        return (
            self.weights_bytes
            + self.repack_bytes
            + self.kv_bytes
            + self.recurrent_bytes
            + self.compute_bytes
            + self.output_bytes
            + self.draft_bytes
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """What a model takes on each device. The server's prompt cache, up to 8 GiB, stands apart and is in no total."""

    devices: tuple[DeviceMemory, ...]
    prompt_cache_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """All devices together."""
        return sum(device.total_bytes for device in self.devices)


def estimate_memory(
    model: ModelFacts,
    knobs: Knobs,
    *,
    gpus: tuple[str, ...] = (),
    split: tuple[float, ...] | None = None,
    engine: Engine | None = None,
    draft: ModelFacts | None = None,
) -> MemoryEstimate | None:
    """Memory of the model under these knobs; a knob that is absent or None counts as llama.cpp's default.

    ``gpus``: names of the GPUs that may take layers (all of them do, unless ``gpu_layers`` says otherwise), ``split``:
    their shares. None where the model's shape, or how its architecture caches, is not known well enough.
    """
    context = _number(knobs, "context_tokens") or model.context_train
    if context is None or model.layers is None:
        return None
    engine = engine or Engine()
    slots = _number(knobs, "slots") or 1
    blocks = model.layers + (model.mtp_layers or 0)
    layers = knobs.get("gpu_layers")
    placement = place(
        blocks,
        gpu_layers=layers if isinstance(layers, int) and layers >= 0 else blocks + 1,
        cpu_moe_layers=_number(knobs, "cpu_moe_layers") or 0,
        gpus=gpus,
        split=split,
    )
    weights = estimate_weights(
        model, placement, engine.repacks, mmap=knobs.get("load_mode") in (None, "auto", "mmap", "mlock")
    )
    unified = knobs.get("kv_unified") in ("on", True)
    flash = knobs.get("flash_attention") != "off"
    size = cache_size(
        model,
        context,
        slots,
        batch=_number(knobs, "batch") or _DEFAULT_BATCH,
        ubatch=_number(knobs, "ubatch") or DEFAULT_UBATCH,
        unified=unified,
    )
    kv_k, kv_v = (str(knobs.get(f"kv_type_{name}") or "f16") for name in ("k", "v"))
    kv = kv_layer_bytes(model, size, kv_k, kv_v, transposed=not flash)
    states = state_layer_bytes(model, slots)
    step = worst_step(model, size, slots, flash_attention=flash, kv_type_k=kv_k, kv_type_v=kv_v)
    compute, output = compute_bytes(model, step), output_bytes(model, slots)
    if weights is None or kv is None or states is None or compute is None or output is None:
        return None
    offload = knobs.get("kv_offload") not in ("off", False)
    devices = []
    for device in (CPU, *gpus):
        part = weights.get(device, WeightBytes())
        here = [home == device if offload else device == CPU for home in placement.layers[: model.layers]]
        devices.append(
            DeviceMemory(
                device,
                part.plain,
                part.repacked,
                kv_bytes=sum(size for size, at_home in zip(kv, here, strict=True) if at_home),
                recurrent_bytes=sum(size for size, at_home in zip(states, here, strict=True) if at_home),
                compute_bytes=compute if device == placement.output else 0,
                output_bytes=output if device == CPU else 0,
            )
        )
    return MemoryEstimate(tuple(devices))


def estimate_total_bytes(model: ModelFacts, knobs: Knobs) -> int | None:
    """All bytes of the model in main memory under these knobs; None as for `estimate_memory`."""
    estimate = estimate_memory(model, knobs)
    return None if estimate is None else estimate.total_bytes


def _number(knobs: Knobs, name: str) -> int | None:
    value = knobs.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else None
