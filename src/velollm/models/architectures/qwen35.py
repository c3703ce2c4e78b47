"""Qwen3.5 and 3.6, dense: gated delta nets with some attention, and layers that guess further tokens (MTP).

src/models/qwen35.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    attention_parts,
    delta_net_parts,
    feed_forward_parts,
    head_keys,
    mtp_parts,
    recurrent_keys,
    recurrent_of,
    rope_keys,
    size_keys,
)
from velollm.models.shape import Shape

_INTERVAL = 4
_SECTIONS = 4


def _metadata(shape: Shape) -> Iterator[Key]:
    for key, value in size_keys(shape):
        yield key, shape.layers + shape.mtp_layers if key == "block_count" else value
    yield from head_keys(shape)
    yield from rope_keys(shape)
    sections = shape.rope.sections or ((shape.rope.dims or shape.head_length) // 2,)
    yield "rope.dimension_sections", [*sections, *[0] * _SECTIONS][:_SECTIONS]
    yield "full_attention_interval", _INTERVAL
    yield from recurrent_keys(recurrent_of(shape, "qwen35"))
    if shape.mtp_layers:
        yield "nextn_predict_layers", shape.mtp_layers


def _attending(shape: Shape) -> Iterator[Part]:
    """Attention whose query matrix gives a gate too."""
    for name, size in attention_parts(shape, head_norms=True):
        yield name, (size[0], 2 * size[1]) if name == "attn_q.weight" else size


def _feed_forward(shape: Shape) -> Iterator[Part]:
    """A feed-forward part whose norm has another name."""
    for name, size in feed_forward_parts(shape):
        yield "post_attention_norm.weight" if name == "ffn_norm.weight" else name, size


def _layer(shape: Shape, layer: int) -> Iterator[Part]:
    if (layer + 1) % _INTERVAL:
        yield from delta_net_parts(shape, recurrent_of(shape, "qwen35"))
    else:
        yield from _attending(shape)
    yield from _feed_forward(shape)


def _mtp_layer(shape: Shape) -> Iterator[Part]:
    yield from _attending(shape)
    yield from _feed_forward(shape)
    yield from mtp_parts(shape.embedding_length)


architecture = Architecture("qwen35", _metadata, _layer, _mtp_layer)
