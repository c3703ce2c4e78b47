"""Bytes of the buffer for intermediate results.

Fitted to what llama.cpp prints when it loads llama-architecture models on a CPU.
"""

from __future__ import annotations

from velollm.facts import ModelFacts
from velollm.models.memory_cache import DEFAULT_UBATCH, _cells, _head_sizes

_FLOAT_BYTES, _HALF_BYTES = 4, 2
# Positions, token ids and cache indices of one token.
_SMALL_INPUTS = 10


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
