"""Bytes of the KV cache and of recurrent states, layer by layer.

Cell counts and row sizes follow llama.cpp b10488: src/llama-context.cpp (``n_ctx_seq``), src/llama-kv-cache.cpp,
src/llama-kv-cache-iswa.cpp, src/llama-memory-recurrent.cpp, src/llama-hparams.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from velollm.facts import ModelFacts, SsmFacts
from velollm.models.types import tensor_type

_CELL_PAD = 256
_FLOAT_BYTES = 4
# Architectures that keep something beside K, V and an SSM state (indexer keys, compressed blocks, WKV or KDA states)
# whose size the metadata kept here does not tell.
_OTHER_CACHES = frozenset(
    {
        *("deepseek32", "glm-dsa", "deepseek4", "minimax-m3", "minimax-01", "kimi-linear", "kimi-k3", "bailingmoe3"),
        *("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "t5", "t5encoder"),
    }
)
# Their cache leaves MTP layers out; guessing with these has one of its own (src/llama-model.cpp, ``create_memory``).
MTP_APART = frozenset({"step35", "hy_v3", "mimo2", "qwen3next", "qwen35", "qwen35moe"})


@dataclass(frozen=True)
class CacheSize:
    """Cells of one stream in full and in sliding layers. ``streams``: one for each slot, or one for all (unified).

    ``ubatch``: tokens of the largest step, ``total_tokens``: the context of all slots together.
    """

    streams: int
    cells: int
    sliding_cells: int
    ubatch: int
    total_tokens: int


def cache_size(
    model: ModelFacts, context_tokens: int, slots: int, *, batch: int, ubatch: int, unified: bool = False
) -> CacheSize:
    """Cells as the engine rounds them: all contexts to 256, and a window with a step behind it to 256.

    A sliding layer keeps min(context, window + ubatch) cells, with a unified cache the windows of all slots together
    (src/llama-kv-cache-iswa.cpp). The batch is at most the whole context before it is rounded
    (src/llama-context.cpp:245 and 288).
    """
    total = padded_cells(context_tokens * slots)
    cells = total if unified else padded_cells(total // slots)
    total = total if unified else cells * slots
    step = min(ubatch, batch, context_tokens * slots)
    sliding = cells
    if model.sliding_window is not None:
        sliding = padded_cells(min(cells, model.sliding_window * (slots if unified else 1) + step))
    return CacheSize(1 if unified else slots, cells, sliding, step, total)


def padded_cells(cells: int) -> int:
    """Cells as the engine makes them, in groups of 256."""
    return -(-cells // _CELL_PAD) * _CELL_PAD


def kv_layer_bytes(
    model: ModelFacts, size: CacheSize, kv_type_k: str, kv_type_v: str, *, transposed: bool = False
) -> tuple[int, ...] | None:
    """KV cache of each layer, for all slots; None where the shape, or how this architecture caches, is unknown.

    With MLA a cell is one compressed row and there is no V. Layers that share the cache of earlier ones keep none.
    MTP layers follow the others. ``transposed``: without flash attention V is kept by value, as wide in every layer as
    in the widest.
    """
    key_type, value_type = tensor_type(kv_type_k), tensor_type(kv_type_v)
    if key_type is None or value_type is None or model.architecture in _OTHER_CACHES or model.layers is None:
        return None
    if model.kv_heads is None:
        return None
    shapes = []
    for layer, heads in enumerate(model.kv_heads):
        if heads == 0 or layer >= model.layers - (model.kv_shared_layers or 0):
            shapes.append((0, 0))
            continue
        sizes = head_sizes(model, layer)
        if sizes is None:
            return None
        shapes.append((heads * sizes[0], heads * sizes[1]))
    widest = max((value for _, value in shapes), default=0)
    slides = model.sliding_layers or (False,) * len(shapes)
    rows = [
        key_type.bytes_of(key) + value_type.bytes_of(widest if transposed and key and value else value)
        for key, value in shapes
    ]
    found = [
        row * (size.sliding_cells if slide else size.cells) * size.streams
        for row, slide in zip(rows, slides, strict=True)
    ]
    if found and model.mtp_layers and model.architecture not in MTP_APART:
        # The engine makes a full cache for them, whether they are used or not (src/llama-kv-cache.cpp, n_layer_all).
        full = [row for row, slide in zip(rows, slides, strict=True) if not slide]
        found += [max(full, default=0) * size.cells * size.streams] * model.mtp_layers
    return tuple(found)


def head_sizes(model: ModelFacts, layer: int) -> tuple[int, int] | None:
    """Values of one KV head in a cell of that layer: K, V."""
    if model.mla is not None:
        return model.mla.kv_lora_rank + model.mla.rope_dims, 0
    key, value = model.key_length, model.value_length
    if model.sliding_layers is not None and model.sliding_layers[layer]:
        key = key if model.key_length_swa is None else model.key_length_swa
        value = value if model.value_length_swa is None else model.value_length_swa
    return None if key is None or value is None else (key, value)


def state_layer_bytes(model: ModelFacts, slots: int, kept: int = 1) -> tuple[int, ...] | None:
    """Recurrent state of each layer, for all slots, in float32; None where its size is unknown.

    ``kept``: states of each slot, which with guesses are those before the last tokens too.
    """
    if model.recurrent_layers is None:
        return None
    if not any(model.recurrent_layers):
        # An SSM that no layer is known to use: an architecture that we cannot lay out.
        return (0,) * len(model.recurrent_layers) if model.ssm is None else None
    values = None if model.ssm is None else _state_values(model.ssm)
    if values is None:
        return None
    return tuple(values * _FLOAT_BYTES * slots * kept if recurrent else 0 for recurrent in model.recurrent_layers)


def _state_values(ssm: SsmFacts) -> int | None:
    """Values of one layer's state: convolution and SSM (src/llama-hparams.cpp, ``n_embd_r`` and ``n_embd_s``)."""
    if ssm.conv_kernel is None or ssm.inner_size is None or ssm.state_size is None:
        return None
    convolution = max(0, ssm.conv_kernel - 1) * (ssm.inner_size + 2 * (ssm.group_count or 0) * ssm.state_size)
    return convolution + ssm.state_size * ssm.inner_size
