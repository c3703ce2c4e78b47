"""Qwen3 with experts in every layer: src/models/qwen3moe.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.errors import VeloError
from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    attention_parts,
    expert_keys,
    expert_parts,
    head_keys,
    rope_keys,
    size_keys,
)
from velollm.models.shape import Experts, Shape


def _experts(shape: Shape) -> Experts:
    if shape.experts is None:
        raise VeloError(f"the shape {shape.name} has no experts", "a qwen3moe model needs expert_count in its shape")
    return shape.experts


def _metadata(shape: Shape) -> Iterator[Key]:
    experts = _experts(shape)
    yield from size_keys(shape)
    yield from head_keys(shape)
    yield from rope_keys(shape)
    yield from expert_keys(experts)
    yield "expert_feed_forward_length", experts.feed_forward_length


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    yield from attention_parts(shape, head_norms=True)
    yield from expert_parts(shape, _experts(shape))


architecture = Architecture("qwen3moe", _metadata, _layer)
