"""Mamba-2: mixers only, no attention: src/models/mamba2.cpp of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.models.architectures.base import (
    Architecture,
    Key,
    Part,
    mixer_parts,
    recurrent_keys,
    recurrent_of,
    size_keys,
)
from velollm.models.shape import Shape


def _metadata(shape: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield "attention.head_count", 0
    yield from recurrent_keys(recurrent_of(shape, "mamba2"))


def _layer(shape: Shape, _: int) -> Iterator[Part]:
    yield from mixer_parts(shape, recurrent_of(shape, "mamba2"))


architecture = Architecture("mamba2", _metadata, _layer)
