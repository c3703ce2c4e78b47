from __future__ import annotations

import pytest

from velollm.backends.ollama_defaults import (
    default_batch,
    default_context_tokens,
    default_threads,
    ollama_default_knobs,
)
from velollm.facts import CpuFacts, Facts, GpuFacts, ModelFacts
from velollm.units import GIB


def gpus(*sizes_gib: float) -> tuple[GpuFacts, ...]:
    return tuple(GpuFacts(vendor="nvidia", vram_bytes=int(size * GIB)) for size in sizes_gib)


@pytest.mark.parametrize(
    ("sizes", "tokens"), [((), 4096), ((8,), 4096), ((12, 12), 32768), ((24,), 32768), ((48,), 262144)]
)
def test_context_follows_the_vram_tier(sizes: tuple[float, ...], tokens: int) -> None:
    assert default_context_tokens(Facts(gpus=gpus(*sizes))) == tokens


def test_context_is_cut_to_the_training_context() -> None:
    facts = Facts(gpus=(), model=ModelFacts(name="m", context_train=2048))
    assert default_context_tokens(facts) == 2048


def test_unknown_gpus_leave_the_context_unknown() -> None:
    assert default_context_tokens(Facts()) is None
    assert ollama_default_knobs(Facts())["load_mode"] == "auto"


def test_batch_grows_with_the_total_context() -> None:
    assert [default_batch(n) for n in (4096, 4097, 32768, 32769)] == [512, 1024, 1024, 2048]


@pytest.mark.parametrize(
    ("cpu", "os", "threads"),
    [
        (CpuFacts(architecture="x86_64", physical_cores=14, performance_cores=6, efficiency_cores=8), "linux", 6),
        (CpuFacts(architecture="aarch64", physical_cores=10, performance_cores=8, efficiency_cores=2), "linux", 10),
        (CpuFacts(architecture="arm64", physical_cores=8, performance_cores=4, efficiency_cores=4), "macos", 4),
        (CpuFacts(physical_cores=16, logical_cores=32), "linux", 16),
        (CpuFacts(logical_cores=4), "linux", 4),
        (CpuFacts(logical_cores=16), "linux", 8),
        (CpuFacts(), "linux", None),
        (None, "linux", None),
    ],
)
def test_threads_are_counted_as_the_engine_counts(cpu: CpuFacts | None, os: str, threads: int | None) -> None:
    assert default_threads(Facts(cpu=cpu, os=os)) == threads


def test_defaults_on_a_machine_without_a_gpu() -> None:
    knobs = ollama_default_knobs(Facts(gpus=(), cpu=CpuFacts(physical_cores=2)))
    assert knobs["slots"] == 1
    assert knobs["load_mode"] == "none"
    assert knobs["speculation"] == "none"
    assert knobs["max_loaded_models"] == 3
