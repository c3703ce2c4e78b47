"""A DFlash draft for a made model, as small as one can be: what it says of every place is what follows one token.

Keys and tensors: src/models/dflash.cpp of llama.cpp b10488. Embeddings and output matrix are the main model's. Where
the text is chosen the layers hardly move what passes through them, so every place that is to be guessed gets the
follower of the token that stands for "not yet known".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from velollm.models.architectures.base import (
    Key,
    Part,
    attention_parts,
    feed_forward_parts,
    head_keys,
    rope_keys,
    size_keys,
)
from velollm.models.quantization import choose_types, find_quantization
from velollm.models.shape import Shape
from velollm.models.succession import Succession
from velollm.models.synthetic import assemble, write_model

BLOCK = 8


def write_dflash(path: Path, main: Shape, succession: Succession | None, *, unknown: int, layers: int = 2) -> Path:
    """A draft for ``main``, with ``unknown`` as the token of places that are to be guessed."""
    shape = Shape("dflash", layers, main.embedding_length, 4, 2, 512, main.vocab, main.context_train, key_length=64)
    quantization = find_quantization("q8_0")
    tensors = choose_types(_parts(shape), quantization, layers=layers)
    entries = {f"dflash.{key}": value for key, value in _keys(shape, main)}
    found = assemble(
        "dflash",
        {"general.architecture": "dflash", "general.file_type": quantization.file_type, **entries},
        tensors,
        vocab=shape.vocab,
        layers=layers,
        seed=1,
        succession=succession,
    )
    write_model(path, replace(found, metadata=(*found.metadata, ("tokenizer.ggml.mask_token_id", unknown))))
    return path


def _keys(shape: Shape, main: Shape) -> Iterator[Key]:
    yield from size_keys(shape)
    yield from head_keys(shape)
    yield from rope_keys(shape)
    yield "target_layers", [1, main.layers - 1]
    yield "block_size", BLOCK


def _parts(shape: Shape) -> Iterator[Part]:
    width = shape.embedding_length
    yield "fc.weight", (2 * width, width)
    yield "enc.output_norm.weight", (width,)
    yield "output_norm.weight", (width,)
    for layer in range(shape.layers):
        for name, size in (*attention_parts(shape, head_norms=True), *feed_forward_parts(shape)):
            yield f"blk.{layer}.{name}", size
