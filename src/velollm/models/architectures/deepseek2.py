"""DeepSeek V2 and V3 with latent attention and its compressed cache: src/models/deepseek2.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.errors import VeloError
from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    expert_keys,
    expert_parts,
    feed_forward_parts,
    latent_parts,
    rope_keys,
    size_keys,
)
from velollm.models.shape import Experts, Latent, Shape

# With these numbers of layers the engine asks for no query rank (``is_lite``); with others it must stand there.
_LITE_LAYERS = (26, 27)
_SOFTMAX = 1
_YARN_LOG_PER_MSCALE = 0.1  # conversion/deepseek.py, add_rope_scaling_yarn_log_mul


def _parts(shape: Shape) -> tuple[Latent, Experts]:
    if shape.latent is None or shape.experts is None:
        raise VeloError(
            f"the shape {shape.name} has no latent attention or no experts", "a deepseek2 model needs both in its shape"
        )
    return shape.latent, shape.experts


def _metadata(shape: Shape) -> Iterator[Key]:
    latent, experts = _parts(shape)
    yield from size_keys(shape)
    yield "attention.head_count", shape.heads
    # The engine attends with one head as wide as the compressed cache.
    yield "attention.head_count_kv", 1
    yield "attention.key_length", latent.kv_rank + latent.rope_dims
    yield "attention.value_length", latent.kv_rank
    yield "attention.key_length_mla", latent.plain_dims + latent.rope_dims
    yield "attention.value_length_mla", latent.value_length
    yield "attention.kv_lora_rank", latent.kv_rank
    if latent.query_rank or shape.layers not in _LITE_LAYERS:
        yield "attention.q_lora_rank", latent.query_rank or 0
    yield from rope_keys(shape)
    if "mscale" in (scaling := dict(shape.rope.scaling)):
        yield "rope.scaling.yarn_log_multiplier", _YARN_LOG_PER_MSCALE * float(scaling["mscale"])
    yield from expert_keys(experts)
    yield "expert_feed_forward_length", experts.feed_forward_length
    yield "expert_shared_count", experts.shared
    yield "expert_weights_scale", 1.0
    yield "expert_gating_func", _SOFTMAX
    yield "leading_dense_block_count", experts.leading_dense_layers


def _layer(shape: Shape, layer: int) -> Iterator[Part]:
    latent, experts = _parts(shape)
    yield "attn_norm.weight", (shape.embedding_length,)
    yield from latent_parts(shape.embedding_length, shape.heads, latent)
    if layer < experts.leading_dense_layers:
        yield from feed_forward_parts(shape)
    else:
        yield from expert_parts(shape, experts)


architecture = Architecture("deepseek2", _metadata, _layer)
