"""Qwen3, dense: src/models/qwen3.cpp of llama.cpp."""

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


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield from head_keys(shape)
    yield from rope_keys(shape)


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    yield from attention_parts(shape, head_norms=True)
    yield from feed_forward_parts(shape)


architecture = Architecture("qwen3", _metadata, _layer)
