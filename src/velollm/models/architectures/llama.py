"""Llama and its kin (Mistral, Mixtral, SmolLM): src/models/llama.cpp of llama.cpp."""

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
    rope_keys,
    size_keys,
)
from velollm.models.shape import Shape


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield from head_keys(shape)
    yield from rope_keys(shape)
    if shape.experts is not None:
        # The width of an expert is feed_forward_length here.
        yield from expert_keys(shape.experts)


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    yield from attention_parts(shape)
    if shape.experts is None:
        yield from feed_forward_parts(shape)
    else:
        yield from expert_parts(shape, shape.experts)


architecture = Architecture("llama", _metadata, _layer)
