"""Memory that a loaded model takes: weights, KV cache and recurrent state, buffers of a computation.

Arithmetic from metadata alone. Cell counts and row sizes follow llama.cpp (src/llama-context.cpp,
src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp, src/llama-memory-recurrent.cpp, src/llama-hparams.cpp). The size of
the compute buffer was fitted to what llama.cpp prints when it loads llama-architecture models on a CPU
(``sched_reserve: CPU compute buffer size``, build of xllamacpp 2026.10): equal to 0.1 MiB where the feed-forward part
is at least 2.7 times as wide as the embedding, as in most models; narrower ones came out between one embedding row a
token too small and two too large. A test holds both against the engine. Not counted: the engine's own program and
stacks, a vision projector, the server's prompt cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from velollm.facts import ModelFacts, SsmFacts
from velollm.knobs import Basis, KnobValue
from velollm.models.types import tensor_type

DEFAULT_UBATCH = 512  # common/common.h of llama.cpp, n_ubatch
_CELL_PAD = 256
_FLOAT_BYTES, _HALF_BYTES = 4, 2
# Positions, token ids and cache indices of one token.
_SMALL_INPUTS = 10
# Architectures that keep something beside K, V and an SSM state (indexer keys, compressed blocks, WKV or KDA states)
# whose size the metadata kept here does not tell.
_OTHER_CACHES = frozenset(
    {"deepseek32", "glm-dsa", "deepseek4", "kimi-linear", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "t5"}
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose. ``kv_bytes`` includes recurrent states, ``compute_bytes`` the output buffer."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    total_bytes: int
    basis: Basis = "arithmetic"


def estimate_total_bytes(model: ModelFacts, knobs: Mapping[str, KnobValue]) -> MemoryEstimate | None:
    """Memory of the model under these knobs; a knob that is absent or None counts as llama.cpp's default.

    With ``load_mode`` mmap on a CPU, pages of the file stay in memory beside the repacked copy; the kernel takes
    them back when it needs them, so they are not counted. None where the model's shape is not known well enough.
    """
    context = _number(knobs, "context_tokens") or model.context_train
    weights = model.tensor_bytes if model.tensor_bytes is not None else model.file_bytes
    if context is None or weights is None:
        return None
    slots = _number(knobs, "slots") or 1
    ubatch = min(_number(knobs, "ubatch") or DEFAULT_UBATCH, _number(knobs, "batch") or 4 * DEFAULT_UBATCH)
    kv_types = [str(knobs.get(f"kv_type_{name}") or "f16") for name in ("k", "v")]
    kv = estimate_kv_bytes(model, context, slots, kv_types[0], kv_types[1], ubatch=ubatch)
    compute = estimate_compute_bytes(
        model, context, slots, ubatch=ubatch, flash_attention=knobs.get("flash_attention") != "off"
    )
    if kv is None or compute is None:
        return None
    return MemoryEstimate(weights, kv, compute, weights + kv + compute)


def _number(knobs: Mapping[str, KnobValue], name: str) -> int | None:
    value = knobs.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else None


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


def estimate_compute_bytes(
    model: ModelFacts,
    context_tokens: int,
    slots: int,
    *,
    ubatch: int = DEFAULT_UBATCH,
    flash_attention: bool = True,
) -> int | None:
    """Buffers for intermediate results of one step, and for the logits of one token a slot.

    Per token of the physical batch: the attention mask over all cells (float16 with flash attention, else
    float32), and the largest of what lives at once in the feed-forward part and in attention, in float32;
    without flash attention also the scores of all heads. Terms for experts and recurrent layers are bounds, not fitted.
    """
    width, inner, attention = model.embedding_length, _inner_values(model), _attention_values(model)
    if width is None or inner is None or attention is None or model.vocab is None:
        return None
    full, sliding = _cells(model, context_tokens, slots, ubatch)
    masks = full + (sliding if any(model.sliding_layers or ()) else 0)
    live = max(3 * inner + 5 * width, 6 * width, 3 * width + attention)
    mask_bytes = masks * (_HALF_BYTES if flash_attention else _FLOAT_BYTES)
    if not flash_attention:
        scores = full * max(model.heads or (0,))
        live = max(live, 4 * width + attention + scores)
    tokens = min(ubatch, full * slots)
    logits = 2 * slots * model.vocab * _FLOAT_BYTES
    return tokens * ((live + _SMALL_INPUTS) * _FLOAT_BYTES + mask_bytes) + logits


def _attention_values(model: ModelFacts) -> int | None:
    """Values of Q twice, K and V of one token in the layer that has most; 0 for a model without attention."""
    if model.heads is None or model.kv_heads is None:
        return 0 if model.recurrent_layers and all(model.recurrent_layers) else None
    most = 0
    for layer, (heads, kv_heads) in enumerate(zip(model.heads, model.kv_heads, strict=True)):
        sizes = _head_sizes(model, layer)
        if sizes is None:
            return None if heads else 0
        most = max(most, 2 * heads * sizes[0] + kv_heads * sum(sizes))
    return most


def _inner_values(model: ModelFacts) -> int | None:
    """Width of the widest inner part: feed-forward, the experts that are used together, or the recurrent state."""
    widths = [] if model.feed_forward_length is None else [max(model.feed_forward_length, default=0)]
    if model.experts and model.experts_used:
        expert = model.expert_feed_forward_length or max(widths, default=0)
        widths.append(model.experts_used * max(expert, model.embedding_length or 0))
    if model.ssm is not None and model.ssm.inner_size is not None and any(model.recurrent_layers or ()):
        widths.append(2 * model.ssm.inner_size)
    return max(widths, default=None)
