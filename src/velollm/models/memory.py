"""Memory that a loaded model takes, on each device: weights, KV cache and recurrent state, buffers of a computation.

Arithmetic from metadata alone, term by term as llama.cpp b10488 computes it. Not counted: the engine's own program and
stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from velollm.facts import ModelFacts
from velollm.knobs import Basis, Knobs
from velollm.models.memory_cache import cache_size, kv_layer_bytes, state_layer_bytes
from velollm.models.memory_compute import compute_bytes, output_bytes, picture_bytes, proposed_tokens, worst_step
from velollm.models.memory_weights import CPU, WeightBytes, estimate_weights, largest_on_cpu, place
from velollm.models.mtp import heads_bytes, kept_states, loaded, runs_heads

__all__ = [
    "CPU",
    "DEFAULT_UBATCH",
    "TERMS",
    "DeviceMemory",
    "Engine",
    "MemoryEstimate",
    "estimate_memory",
    "estimate_total_bytes",
]

# common/common.h of llama.cpp, n_ubatch and n_batch.
DEFAULT_UBATCH = 512
_DEFAULT_BATCH = 2048
_OFFLOADED_TOKENS = 32  # GGML_OP_OFFLOAD_MIN_BATCH, ggml/src/ggml-cuda/ggml-cuda.cu
# What an engine's log names, one by one.
TERMS = ("weights", "repack", "kv", "recurrent", "compute", "output")
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
    ``draft_bytes``: all that a draft model takes there, or the cache and buffers of guesses by MTP layers.
    ``picture_bytes``: what a projector of pictures computes in.
    """

    device: str
    weights_bytes: int = 0
    repack_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    draft_bytes: int = 0
    picture_bytes: int = 0
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
            + self.picture_bytes
        )


def device_fields(device: DeviceMemory) -> dict[str, str | int]:
    """The device as JSON documents have it."""
    found: dict[str, str | int] = {item.name: getattr(device, item.name) for item in fields(device)}
    basis = found.pop("basis")
    return {**found, "total_bytes": device.total_bytes, "basis": basis}


@dataclass(frozen=True)
class MemoryEstimate:
    """What a model takes on each device. The server's prompt cache, up to 8 GiB, stands apart and is in no total."""

    devices: tuple[DeviceMemory, ...]
    prompt_cache_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """All devices together."""
        return sum(device.total_bytes for device in self.devices)


def corrected(found: MemoryEstimate, factors: Mapping[str, float]) -> MemoryEstimate:
    """The estimate with each term times its factor, one without a factor of its own times that of the ``total``."""
    if not factors:
        return found
    every = factors.get("total", 1.0)
    devices = []
    for device in found.devices:
        sizes = {f"{term}_bytes": factors.get(term, every) for term in TERMS}
        scaled = {name: round(getattr(device, name) * factor) for name, factor in sizes.items()}
        devices.append(replace(device, **scaled, basis="corrected"))
    return replace(found, devices=tuple(devices))


@dataclass(frozen=True)
class _Settings:
    """Knobs as numbers; one that is absent or None is as llama.cpp sets it."""

    context: int
    slots: int
    batch: int
    ubatch: int
    kv_k: str
    kv_v: str
    flash_attention: bool
    unified: bool
    offload: bool
    mmap: bool
    gpu_layers: int | None
    cpu_moe_layers: int
    cpu_ffn_layers: int
    speculation: str
    proposed: int | None
    repack: bool


def _settings(model: ModelFacts, knobs: Knobs) -> _Settings | None:
    context = _number(knobs, "context_tokens") or model.context_train
    if context is None:
        return None
    layers = knobs.get("gpu_layers")
    return _Settings(
        context=context,
        slots=_number(knobs, "slots") or 1,
        batch=_number(knobs, "batch") or _DEFAULT_BATCH,
        ubatch=_number(knobs, "ubatch") or DEFAULT_UBATCH,
        kv_k=str(knobs.get("kv_type_k") or "f16"),
        kv_v=str(knobs.get("kv_type_v") or "f16"),
        flash_attention=knobs.get("flash_attention") != "off",
        unified=knobs.get("kv_unified") in ("on", True),
        offload=knobs.get("kv_offload") not in ("off", False),
        mmap=knobs.get("load_mode") in (None, "auto", "mmap", "mlock"),
        gpu_layers=layers if isinstance(layers, int) and layers >= 0 else None,
        cpu_moe_layers=_number(knobs, "cpu_moe_layers") or 0,
        cpu_ffn_layers=_number(knobs, "cpu_ffn_layers") or 0,
        speculation=str(knobs.get("speculation") or "none"),
        proposed=_number(knobs, "speculation_tokens"),
        repack=knobs.get("repack") != "off",
    )


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

    ``gpus``: names of the GPUs that may take layers (all layers go there, unless ``gpu_layers`` says otherwise),
    ``split``: their shares. ``draft``: a model beside it that proposes tokens, with as much context. What an engine
    once allocated (``memory_factors``) corrects each term. None where the shape of either, or how its architecture
    caches, is not known well enough.
    """
    settings = _settings(model, knobs)
    if settings is None or model.layers is None:
        return None
    if draft is not None and settings.speculation == "none":
        settings = replace(settings, speculation="draft-simple")
    found = _devices(model, settings, model.layers, gpus, split, engine or Engine())
    if found is None:
        return None
    found = corrected(MemoryEstimate(found), model.memory_factors).devices
    if draft is None:
        return MemoryEstimate(found)
    beside = _devices(
        draft,
        replace(
            settings, kv_k="f16", kv_v="f16", gpu_layers=None, cpu_moe_layers=0, cpu_ffn_layers=0, speculation="none"
        ),
        draft.layers or 0,
        gpus,
        split,
        engine or Engine(),
    )
    if beside is None:
        return None
    return MemoryEstimate(
        tuple(
            replace(own, draft_bytes=own.draft_bytes + other.total_bytes)
            for own, other in zip(found, beside, strict=True)
        )
    )


def _devices(
    model: ModelFacts,
    settings: _Settings,
    layers: int,
    gpus: tuple[str, ...],
    split: tuple[float, ...] | None,
    engine: Engine,
) -> tuple[DeviceMemory, ...] | None:
    """All terms of one model, by device."""
    blocks = layers + (model.mtp_layers or 0)
    placement = place(
        blocks,
        gpu_layers=blocks + 1 if settings.gpu_layers is None else settings.gpu_layers,
        cpu_moe_layers=settings.cpu_moe_layers,
        gpus=gpus,
        split=split,
        cpu_ffn_layers=settings.cpu_ffn_layers,
    )
    # Beside a GPU the CPU's weights stay as the GPU can read them (src/llama-model.cpp, ``make_cpu_buft_list``).
    repacks = engine.repacks if settings.repack and not gpus else frozenset()
    weights = estimate_weights(loaded(model, settings.speculation), placement, repacks, mmap=settings.mmap)
    proposed = proposed_tokens(settings.speculation, settings.proposed)
    kept = kept_states(model, settings.speculation, proposed)
    size = cache_size(
        model,
        settings.context,
        settings.slots,
        batch=settings.batch,
        ubatch=settings.ubatch,
        unified=settings.unified,
    )
    kv = kv_layer_bytes(model, size, settings.kv_k, settings.kv_v, transposed=not settings.flash_attention)
    states = state_layer_bytes(model, settings.slots, kept)
    step = worst_step(
        model,
        size,
        settings.slots,
        flash_attention=settings.flash_attention,
        kv_type_k=settings.kv_k,
        kv_type_v=settings.kv_v,
        proposed=proposed,
        snapshots=kept,
    )
    names = (CPU, *gpus)
    homes = tuple(names.index(home) for home in (*placement.layers[:layers], placement.output))
    parallel = len(gpus) > 1 and CPU not in placement.layers
    # In large steps a GPU computes with weights of main memory too.
    offloads = bool(gpus) and step.tokens >= _OFFLOADED_TOKENS
    inner = () if offloads else tuple(names.index(home) for home in placement.feed_forward[:layers])
    compute = compute_bytes(model, step, homes, len(names), parallel=parallel, feed_forward=inner)
    output = output_bytes(model, step)
    guessing = settings.speculation == "draft-mtp" and runs_heads(model)
    heads = heads_bytes(model, size, step) if guessing else 0
    if weights is None or kv is None or states is None or compute is None or output is None or heads is None:
        return None
    if offloads:
        compute = (compute[0], compute[1] + largest_on_cpu(model, placement), *compute[2:])
    # What turns pictures into embeddings goes to the first GPU, if there is one (tools/mtmd/clip.cpp).
    projector = model.projector_bytes or 0
    pictures = 0 if model.projector is None else picture_bytes(model.projector, on_gpu=bool(gpus))
    return tuple(
        DeviceMemory(
            name,
            weights.get(name, WeightBytes()).plain + (projector if name == (*gpus, CPU)[0] else 0),
            weights.get(name, WeightBytes()).repacked,
            kv_bytes=_at(name, placement.layers, kv, settings.offload),
            recurrent_bytes=_at(name, placement.layers, states, settings.offload),
            compute_bytes=compute[number],
            output_bytes=output if name == CPU else 0,
            draft_bytes=heads if name == placement.layers[-1] else 0,
            picture_bytes=pictures if name == (*gpus, CPU)[0] else 0,
        )
        for number, name in enumerate(names)
    )


def _at(device: str, homes: tuple[str, ...], sizes: tuple[int, ...], offload: bool) -> int:
    """Bytes of those layers that keep their cache on the device."""
    places = homes if offload else (CPU,) * len(homes)
    return sum(size for home, size in zip(places, sizes, strict=False) if home == device)


def estimate_total_bytes(model: ModelFacts, knobs: Knobs) -> int | None:
    """Main memory that must be there for the model under these knobs; None as for `estimate_memory`.

    Pages of a mapped file are left out where their repacked copy is used: the kernel takes them back when it must.
    """
    estimate = estimate_memory(model, {**knobs, "load_mode": "none"})
    return None if estimate is None else estimate.total_bytes


def _number(knobs: Knobs, name: str) -> int | None:
    value = knobs.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else None
