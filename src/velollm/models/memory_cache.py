"""Bytes of the KV cache and of recurrent states.

Cell counts and row sizes follow llama.cpp b10488: src/llama-context.cpp, src/llama-kv-cache.cpp,
src/llama-kv-cache-iswa.cpp, src/llama-memory-recurrent.cpp, src/llama-hparams.cpp.
"""

from __future__ import annotations

from velollm.facts import ModelFacts, SsmFacts
from velollm.models.types import tensor_type

DEFAULT_UBATCH = 512  # common/common.h of llama.cpp, n_ubatch
_CELL_PAD = 256
_FLOAT_BYTES = 4
# Architectures that keep something beside K, V and an SSM state (indexer keys, compressed blocks, WKV or KDA states)
# whose size the metadata kept here does not tell.
_OTHER_CACHES = frozenset(
    {"deepseek32", "glm-dsa", "deepseek4", "kimi-linear", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "t5"}
)


def estimate_kv_bytes(
    model: ModelFacts,
    context_tokens: int,
    slots: int,
    kv_type_k: str,
    kv_type_v: str,
    *,
    ubatch: int = DEFAULT_UBATCH,
) -> int | None:
    """KV cache and recurrent states for ``slots`` conversations of ``context_tokens`` each.

    Each slot has its own cells (no unified KV), padded to 256. A sliding layer keeps
    min(context, window + ubatch) cells, padded to 256 (src/llama-kv-cache-iswa.cpp). With MLA a cell is one compressed
    row and there is no V. Layers that share the cache of earlier ones keep none. None where the shape, or how
    this architecture caches, is unknown.
    """
    rows = _row_bytes(model, kv_type_k, kv_type_v)
    state = _state_bytes(model)
    if rows is None or state is None:
        return None
    full, sliding = _cells(model, context_tokens, slots, ubatch)
    slides = model.sliding_layers or (False,) * len(rows)
    per_slot = sum(row * (sliding if slide else full) for row, slide in zip(rows, slides, strict=True))
    return (per_slot + state) * slots


def _cells(model: ModelFacts, context_tokens: int, slots: int, ubatch: int) -> tuple[int, int]:
    """Cells of a slot in a full and in a sliding layer."""
    full = _padded(context_tokens)
    if model.sliding_window is None:
        return full, full
    return full, _padded(min(full, model.sliding_window + min(ubatch, full * slots)))


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PAD) * _CELL_PAD


def _row_bytes(model: ModelFacts, kv_type_k: str, kv_type_v: str) -> tuple[int, ...] | None:
    """Bytes of one cell in each layer (src/llama-kv-cache.cpp: ``n_embd_k_gqa``, ``n_embd_v_gqa``)."""
    key_type, value_type = tensor_type(kv_type_k), tensor_type(kv_type_v)
    if key_type is None or value_type is None or model.architecture in _OTHER_CACHES or model.layers is None:
        return None
    if model.kv_heads is None:
        return None
    with_kv = model.layers - (model.kv_shared_layers or 0)
    rows = []
    for layer, heads in enumerate(model.kv_heads):
        if heads == 0 or layer >= with_kv:
            rows.append(0)
            continue
        sizes = _head_sizes(model, layer)
        if sizes is None:
            return None
        rows.append(key_type.bytes_of(heads * sizes[0]) + value_type.bytes_of(heads * sizes[1]))
    return tuple(rows)


def _head_sizes(model: ModelFacts, layer: int) -> tuple[int, int] | None:
    """Values of one KV head in a cell of that layer: K, V."""
    if model.mla is not None:
        return model.mla.kv_lora_rank + model.mla.rope_dims, 0
    key, value = model.key_length, model.value_length
    if model.sliding_layers is not None and model.sliding_layers[layer]:
        key = key if model.key_length_swa is None else model.key_length_swa
        value = value if model.value_length_swa is None else model.value_length_swa
    return None if key is None or value is None else (key, value)


def _state_bytes(model: ModelFacts) -> int | None:
    """Recurrent state of one slot over all layers, in float32; None where its size is unknown."""
    if model.recurrent_layers is None:
        return None
    count = sum(model.recurrent_layers)
    if count == 0:
        # An SSM that no layer is known to use: an architecture that we cannot lay out.
        return 0 if model.ssm is None else None
    values = None if model.ssm is None else _state_values(model.ssm)
    return None if values is None else count * values * _FLOAT_BYTES


def _state_values(ssm: SsmFacts) -> int | None:
    """Values of one layer's state: convolution and SSM (src/llama-hparams.cpp, ``n_embd_r`` and ``n_embd_s``)."""
    if ssm.conv_kernel is None or ssm.inner_size is None or ssm.state_size is None:
        return None
    convolution = max(0, ssm.conv_kernel - 1) * (ssm.inner_size + 2 * (ssm.group_count or 0) * ssm.state_size)
    return convolution + ssm.state_size * ssm.inner_size
