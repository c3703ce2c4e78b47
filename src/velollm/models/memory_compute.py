"""Bytes of the buffers that an engine computes in: intermediate results of its largest step, and logits."""

from __future__ import annotations

from functools import lru_cache

from velollm.facts import ModelFacts, ProjectorFacts
from velollm.knobs import QUANTIZED_KV_TYPES
from velollm.models.graph_models import build_graph
from velollm.models.graph_parts import Step
from velollm.models.graph_pictures import picture_graph
from velollm.models.memory_cache import CacheSize

_FLOAT_BYTES = 4
# Tokens that each kind of speculation may propose at once (common/common.h; ``common_speculative_n_max``).
_PROPOSED = {
    "ngram-simple": 48,
    "ngram-map-k": 48,
    "ngram-map-k4v": 48,
    "ngram-mod": 64,
    "ngram-cache": 8,
    "draft-simple": 3,
    "draft-mtp": 3,
    "draft-dflash": 3,
}
_FIXED = frozenset({"none", "ngram-cache"})
_CPU_ALIGNMENT = 32  # TENSOR_ALIGNMENT, ggml/src/ggml-impl.h
_GPU_ALIGNMENT = 128  # ggml/src/ggml-cuda/ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alignment
# Its graph picks no rows (src/models/dflash.cpp), and what samples from them has them once more.
_ALL_OUTPUTS = "dflash"
_TURNED_HEAD = 64  # src/llama-kv-cache.cpp, attn_rot_k


def proposed_tokens(speculation: str, asked: int | None = None) -> int:
    """Most tokens that this kind of speculation proposes at once: as asked, else the engine's own number."""
    own = _PROPOSED.get(speculation, 0)
    return own if asked is None or not own or speculation in _FIXED else asked


def worst_step(
    model: ModelFacts,
    size: CacheSize,
    slots: int,
    *,
    flash_attention: bool,
    kv_type_k: str,
    kv_type_v: str,
    proposed: int = 0,
    snapshots: int = 1,
) -> Step:
    """The step that the engine reserves for: a whole ubatch (src/llama-context.cpp, ``sched_reserve``).

    Each slot gets one row of logits, and one more for each ``proposed`` token of speculation
    (tools/server/server-context.cpp, ``server_output_limits``); a DFlash draft makes one for every token.
    """
    tokens = -(-size.ubatch // slots) * slots
    rows = tokens if model.architecture == _ALL_OUTPUTS else slots * (1 + proposed)
    return Step(
        tokens=tokens,
        sequences=slots,
        outputs=min(size.ubatch, rows),
        streams=size.streams,
        cells=size.cells,
        sliding_cells=size.sliding_cells,
        flash_attention=flash_attention,
        turns_k=kv_type_k in QUANTIZED_KV_TYPES and _turns(model, model.key_length, model.key_length_swa),
        turns_v=kv_type_v in QUANTIZED_KV_TYPES and _turns(model, model.value_length, model.value_length_swa),
        snapshots=snapshots,
    )


def _turns(model: ModelFacts, head: int | None, sliding_head: int | None) -> bool:
    """Are the heads of a size that the engine turns by a Hadamard matrix before it quantizes them?"""
    return model.mla is None and bool(head) and (head or 0) % _TURNED_HEAD == 0 and sliding_head in (None, head)


def compute_bytes(
    model: ModelFacts,
    step: Step,
    homes: tuple[int, ...] = (),
    devices: int = 1,
    *,
    parallel: bool = False,
    feed_forward: tuple[int, ...] = (),
) -> tuple[int, ...] | None:
    """The compute buffer on each device; None where the model's shape is not known well enough.

    ``homes``: the device of each layer and of the output, 0 for the CPU; ``feed_forward``: of each layer's dense
    feed-forward part, where that is another one. ``parallel``: several GPUs work on several
    steps at once, and keep four copies of the inputs (GGML_SCHED_MAX_COPIES).
    """
    graph = build_graph(model, step, *((homes, feed_forward) if devices > 1 else ()))
    if graph is None:
        return None
    more = step.outputs * (model.vocab or 0) * _FLOAT_BYTES if model.architecture == _ALL_OUTPUTS else 0
    if devices == 1:
        return (graph.buffer_bytes()[0] + more,)
    graph.copy_between(4 if parallel else 1)
    found = graph.buffer_bytes((_CPU_ALIGNMENT, *[_GPU_ALIGNMENT] * (devices - 1)))
    return (*found[:-1], found[-1] + more)


@lru_cache(maxsize=8)
def picture_bytes(projector: ProjectorFacts, *, on_gpu: bool) -> int:
    """What a projector computes in, for a picture of the size that the engine reserves for when it is loaded."""
    (found,) = picture_graph(projector).buffer_bytes((_GPU_ALIGNMENT if on_gpu else _CPU_ALIGNMENT,))
    return found


def output_bytes(model: ModelFacts, step: Step) -> int | None:
    """Logits as they are handed out, a row for each slot (src/llama-context.cpp, ``output_reserve``)."""
    return None if model.vocab is None else step.sequences * model.vocab * _FLOAT_BYTES
