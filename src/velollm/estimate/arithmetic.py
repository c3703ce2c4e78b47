"""The memory arithmetic for a machine: its GPUs, and what its processor repacks."""

from __future__ import annotations

from pathlib import Path

from velollm.facts import Facts, GpuFacts, ModelFacts
from velollm.knobs import Knobs
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.memory import AVX2_REPACKS, Engine, MemoryEstimate, estimate_memory

# What other processors repack (ggml/src/ggml-cpu/repack.cpp): the rest needs AVX-512, or matrix instructions of ARM.
_AVX512_REPACKS = AVX2_REPACKS | {"q2_k"}
_ARM_REPACKS = AVX2_REPACKS | {"q5_k", "q6_k", "q8_0"}


def calculate(
    model: ModelFacts, knobs: Knobs, machine: Facts, *, draft: ModelFacts | None = None
) -> MemoryEstimate | None:
    """The arithmetic for a machine: all its GPUs may take layers, in proportion to their memory.

    A draft that the knobs name is read from its file, where none is given. Raises `VeloError` where that cannot be.
    """
    path = knobs.get("draft_model")
    if draft is None and isinstance(path, str) and str(knobs.get("speculation")).startswith("draft"):
        draft = model_facts(read_gguf(Path(path)), path)
    gpus = gpu_names(machine)
    sizes = [gpu.vram_free_bytes or gpu.vram_bytes or gpu.shared_pool_bytes or 0 for gpu in _gpus(machine)]
    split = tuple(float(size) for size in sizes) if gpus and all(sizes) else None
    return estimate_memory(model, knobs, gpus=gpus, split=split, engine=engine_of(machine), draft=draft)


def gpu_names(machine: Facts) -> tuple[str, ...]:
    """A name for each GPU, different ones."""
    names = [gpu.name or "GPU" for gpu in _gpus(machine)]
    return tuple(f"{name} #{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1))


def engine_of(machine: Facts) -> Engine:
    """What the processor repacks; where it is not known, what most do (x86 with AVX2)."""
    isa = machine.cpu.isa if machine.cpu else None
    if isa is None:
        return Engine()
    if {"neon", "asimd"} & set(isa):
        return Engine(_ARM_REPACKS if {"dotprod", "i8mm"} & set(isa) else frozenset())
    if "avx512" in isa:
        return Engine(_AVX512_REPACKS)
    return Engine(AVX2_REPACKS if "avx2" in isa else frozenset())


def _gpus(machine: Facts) -> tuple[GpuFacts, ...]:
    """GPUs that engines put layers on: cards, and Apple's; other processors' built-in ones are left alone."""
    return tuple(gpu for gpu in machine.gpus or () if not gpu.integrated or gpu.vendor == "apple")
