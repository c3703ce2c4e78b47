"""Granite 4 hybrids, mixers with some attention, dense or with experts: src/models/granite-hybrid.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    attention_parts,
    expert_keys,
    expert_parts,
    feed_forward_parts,
    head_keys,
    mixer_parts,
    recurrent_keys,
    recurrent_of,
    rope_keys,
    size_keys,
)
from velollm.models.shape import Shape

# The scalings are steps of the engine's graph. The catalog does not name them; these keep made activations in range.
_EMBEDDING_SCALE = 12.0
_RESIDUAL_SCALE = 0.22
_WIDTH_OF_LOGIT_SCALE = 256


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    for key, value in head_keys(shape):
        # A layer without KV heads recurs.
        per_layer = [0 if shape.recurs(layer) else shape.kv_heads for layer in range(shape.layers)]
        yield key, per_layer if key == "attention.head_count_kv" else value
    yield from rope_keys(shape)
    yield "rope.scaling.finetuned", shape.rope.applied
    yield "attention.scale", 1 / shape.head_length
    yield "embedding_scale", _EMBEDDING_SCALE
    yield "residual_scale", _RESIDUAL_SCALE
    yield "logit_scale", shape.embedding_length / _WIDTH_OF_LOGIT_SCALE
    yield from recurrent_keys(recurrent_of(shape, "granitehybrid"))
    if shape.experts is not None:
        yield from expert_keys(shape.experts)
        yield "expert_shared_feed_forward_length", shape.experts.shared_length


def _layer(shape: Shape, layer: int) -> Iterator[Part]:
    if shape.recurs(layer):
        yield from mixer_parts(shape, recurrent_of(shape, "granitehybrid"))
    else:
        yield from attention_parts(shape)
    if shape.experts is None:
        yield from feed_forward_parts(shape)
    else:
        yield from expert_parts(shape, shape.experts)


architecture = Architecture("granitehybrid", _metadata, _layer)
