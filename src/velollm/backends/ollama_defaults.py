"""What Ollama chooses by itself on a machine: the arm that every plan is measured against.

Sources are lines of Ollama v0.33.0-rc2, unless said otherwise.
"""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, KnobValue
from velollm.units import GIB

DEFAULT_KEEP_ALIVE_S = 300  # envconfig/config.go:129-144
_MODELS_PER_GPU = 3  # server/sched.go:280-291
_SMALL_CONTEXT, _MIDDLE_CONTEXT, _LARGE_CONTEXT = 4096, 32768, 262144


def default_context_tokens(facts: Facts) -> int | None:
    """Context by total VRAM: 262,144 from 47 GiB, 32,768 from 23 GiB, else 4,096 (server/routes.go:2048-2058).

    Cut to the model's training context (llm/server.go:111-116). None where the GPUs are unknown.
    """
    if facts.gpus is None:
        return None
    total = sum(gpu.vram_bytes or 0 for gpu in facts.gpus)
    tier = _LARGE_CONTEXT if total >= 47 * GIB else _MIDDLE_CONTEXT if total >= 23 * GIB else _SMALL_CONTEXT
    trained = facts.model.context_train if facts.model else None
    return min(tier, trained) if trained else tier


def default_batch(total_context_tokens: int) -> int:
    """Automatic num_batch: 512 up to 4,096 tokens of context in all, 1,024 up to 32,768, else 2,048.

    server/sched.go:797-895; it is lowered again where memory is short, which is not reproduced here.
    """
    if total_context_tokens <= _SMALL_CONTEXT:
        return 512
    return 1024 if total_context_tokens <= _MIDDLE_CONTEXT else 2048


def default_threads(facts: Facts) -> int | None:
    """Threads as llama.cpp counts them: physical cores; on hybrid x86 and on Macs the performance cores.

    common/common.cpp:202-288 at b10488; it looks at neither cpuset nor CPU quota. Where the kernel tells no
    physical cores, it takes all hardware threads up to 4, and half of them above.
    """
    cpu = facts.cpu
    if cpu is None:
        return None
    counts_kinds = facts.os == "macos" or cpu.architecture in ("x86_64", "AMD64")
    if counts_kinds and cpu.efficiency_cores and cpu.performance_cores:
        return cpu.performance_cores
    if cpu.physical_cores:
        return cpu.physical_cores
    if cpu.logical_cores:
        return cpu.logical_cores if cpu.logical_cores <= 4 else cpu.logical_cores // 2
    return None


def ollama_default_knobs(facts: Facts) -> Knobs:
    """All knobs as Ollama would set them here; what cannot be known is None."""
    context = default_context_tokens(facts)
    batch = default_batch(context) if context else 512
    has_gpu = bool(facts.gpus)
    values: dict[str, KnobValue] = {
        "threads": default_threads(facts),
        "context_tokens": context,
        "slots": 1,
        "kv_type_k": "f16",
        "kv_type_v": "f16",
        "kv_unified": "off",
        "kv_offload": "on",
        "gpu_layers": None,
        "cpu_moe_layers": None,
        "cpu_ffn_layers": None,
        "flash_attention": "auto",
        "batch": batch,
        "ubatch": batch,
        "keep_alive_s": DEFAULT_KEEP_ALIVE_S,
        "load_mode": "auto" if has_gpu or facts.gpus is None else "none",
        "batch_threads": None,
        "repack": "on",
        "openmp_wait": None,
        "speculation": "none",
        "speculation_tokens": None,
        "speculation_match": None,
        "draft_model": None,
        "cache_reuse": 0,
        "polling": None,
        "priority": "normal",
        "max_loaded_models": None if facts.gpus is None else _MODELS_PER_GPU * max(1, len(facts.gpus)),
    }
    return values
