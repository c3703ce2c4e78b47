"""Bytes of the buffers that an engine computes in: intermediate results of its largest step, and logits."""

from __future__ import annotations

from velollm.facts import ModelFacts
from velollm.knobs import QUANTIZED_KV_TYPES
from velollm.models.graph_models import build_graph
from velollm.models.graph_parts import Step
from velollm.models.memory_cache import CacheSize

_FLOAT_BYTES = 4
_TURNED_HEAD = 64  # src/llama-kv-cache.cpp, attn_rot_k


def worst_step(
    model: ModelFacts, size: CacheSize, slots: int, *, flash_attention: bool, kv_type_k: str, kv_type_v: str
) -> Step:
    """The step that the engine reserves for: a whole ubatch, one row of logits for each slot (src/llama-context.cpp,
    ``sched_reserve``; tools/server/server-context.cpp, ``server_output_limits``)."""
    tokens = -(-size.ubatch // slots) * slots
    return Step(
        tokens=tokens,
        sequences=slots,
        outputs=min(size.ubatch, slots),
        streams=size.streams,
        cells=size.cells,
        sliding_cells=size.sliding_cells,
        flash_attention=flash_attention,
        turns_k=kv_type_k in QUANTIZED_KV_TYPES and _turns(model, model.key_length, model.key_length_swa),
        turns_v=kv_type_v in QUANTIZED_KV_TYPES and _turns(model, model.value_length, model.value_length_swa),
    )


def _turns(model: ModelFacts, head: int | None, sliding_head: int | None) -> bool:
    """Are the heads of a size that the engine turns by a Hadamard matrix before it quantizes them?"""
    return model.mla is None and head is not None and head % _TURNED_HEAD == 0 and sliding_head in (None, head)


def compute_bytes(model: ModelFacts, step: Step) -> int | None:
    """The compute buffer on a CPU; None where the model's shape is not known well enough."""
    graph = build_graph(model, step)
    return None if graph is None else graph.buffer_bytes()[0]


def output_bytes(model: ModelFacts, slots: int) -> int | None:
    """Logits of one token a slot, where they are handed out (src/llama-context.cpp, ``output_reserve``)."""
    return None if model.vocab is None else slots * model.vocab * _FLOAT_BYTES
