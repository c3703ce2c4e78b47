"""Gemma 3 without its vision tower: src/models/gemma3.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    attention_parts,
    feed_forward_parts,
    head_keys,
    rope_keys,
    size_keys,
)
from velollm.models.shape import Shape

# All but every sixth layer slide; the engine takes this number where the file names none.
_PERIOD = 6


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield from head_keys(shape)
    yield from rope_keys(shape)
    if shape.sliding_window:
        yield "attention.sliding_window", shape.sliding_window
        yield "attention.sliding_window_pattern", _PERIOD
        yield "rope.freq_base_swa", float(shape.rope.theta_swa or 10000.0)


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    width = (shape.embedding_length,)
    yield from attention_parts(shape, head_norms=True)
    yield "post_attention_norm.weight", width
    yield from feed_forward_parts(shape)
    yield "post_ffw_norm.weight", width


architecture = Architecture("gemma3", _metadata, _layer)
