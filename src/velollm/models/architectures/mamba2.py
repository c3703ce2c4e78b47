"""Mamba-2: mixers only, no attention: src/models/mamba2.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.errors import VeloError
from velollm.models.architectures.base import Architecture, Key, Part, mixer_parts, recurrent_keys, size_keys
from velollm.models.shape import Recurrent, Shape


def _recurrent(shape: Shape) -> Recurrent:
    if shape.recurrent is None:
        raise VeloError(f"the shape {shape.name} has no state sizes", "a mamba2 model needs ssm in its shape")
    return shape.recurrent


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield "attention.head_count", 0
    yield from recurrent_keys(_recurrent(shape))


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    yield from mixer_parts(shape, _recurrent(shape))


architecture = Architecture("mamba2", _metadata, _layer)
