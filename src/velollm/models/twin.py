"""A twin of a model that is there: its shape and the number format of each tensor, filled with random values.

Where they come from: the header of a GGUF file, or what an Ollama server tells of a model whose file cannot be read
(``/api/show`` lists every tensor with its format and shape; server/routes.go of Ollama v0.33.0-rc2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from velollm.errors import VeloError
from velollm.models.header import GgufHeader, Passed
from velollm.models.quantization import choose_types, find_quantization, in_layer_order
from velollm.models.shown import parse_shown_header
from velollm.models.succession import Succession
from velollm.models.synthetic import Blueprint, assemble, heads_embeddings
from velollm.models.types import TYPE_IDS
from velollm.models.writer import NewTensor, WriteValue

# Towers for pictures and sound, which text does not pass through.
_TOWERS = ("v.", "mm.", "a.", "vision.", "audio.", "projector.")


@dataclass(frozen=True, eq=False)
class Model:
    """What a twin takes of a model: its architecture's metadata (whole keys), and its tensors."""

    name: str
    architecture: str
    entries: Mapping[str, WriteValue]
    tensors: tuple[NewTensor, ...]


def model_of_header(header: GgufHeader, name: str) -> Model:
    """The model of a GGUF file.

    Raises:
        VeloError: the file is one part of a split model, names no architecture, or has tensors in unknown formats.
    """
    parts = header.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise VeloError(f"{name} is one part of a split model", "give a model that is one file")
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise VeloError(f"{name} does not tell its architecture", "give another model")
    # Of an empty list nobody can say what it is a list of.
    told = {key: value for key, value in header.metadata.items() if not isinstance(value, Passed) and value != ()}
    own = {key: value for key, value in told.items() if _is_own(key, architecture)}
    tensors = (NewTensor(info.name, info.shape, info.type_name) for info in header.tensors)
    text = tuple(tensor for tensor in tensors if not tensor.name.startswith(_TOWERS))
    unknown = next((tensor for tensor in text if tensor.type_name not in TYPE_IDS), None)
    if unknown is not None:
        raise VeloError(
            f"{unknown.name} of {name} has the number format {unknown.type_name}, which is not known here",
            "choose a quantization with --quant",
        )
    return Model(name, architecture, own, text)


def model_of_shown(shown: Mapping[str, Any], name: str) -> Model:
    """The model that an answer of ``/api/show`` describes; ``verbose`` ones have the lists with an entry a layer.

    Raises:
        VeloError: the server names no tensors (before v0.5.8), or as `model_of_header`.
    """
    header = parse_shown_header(shown, name)
    if header is None:
        raise VeloError(
            f"the server does not tell the tensors of {name}", "a newer Ollama does; or give the path of a GGUF file"
        )
    return model_of_header(header, name)


def _is_own(key: str, architecture: str) -> bool:
    prefix, _, rest = key.partition(".")
    return key == "general.file_type" or (prefix == architecture and not rest.startswith(("vision.", "audio.", "mm.")))


def draw_twin(
    model: Model, *, quantization: str | None = None, seed: int = 1, succession: Succession | None = None
) -> Blueprint:
    """The blueprint of a twin; ``quantization`` puts a mixture in the place of the model's own formats.

    Raises:
        VeloError: the model has no embeddings or layers, or the wanted formats or succession cannot be had.
    """
    embedding = next((tensor for tensor in model.tensors if tensor.name == "token_embd.weight"), None)
    layers = model.entries.get(f"{model.architecture}.block_count")
    if embedding is None or len(embedding.shape) != 2 or not isinstance(layers, int):
        raise VeloError(f"{model.name} is no model that writes text", "give another model")
    tensors = model.tensors if succession is None else tuple(_with_chosen(model, embedding, succession))
    entries = dict(model.entries)
    if quantization is not None:
        mixture = find_quantization(quantization)
        experts = model.entries.get(f"{model.architecture}.expert_count")
        parts = in_layer_order((tensor.name, tensor.shape) for tensor in tensors)
        tensors = choose_types(parts, mixture, layers=layers, experts=experts if isinstance(experts, int) else 0)
        entries["general.file_type"] = mixture.file_type
    return assemble(
        f"{model.name} (made)",
        {"general.architecture": model.architecture, **entries},
        tensors,
        vocab=embedding.shape[1],
        layers=layers,
        seed=seed,
        succession=succession,
        like=model.name,
    )


def _with_chosen(model: Model, embedding: NewTensor, succession: Succession) -> Iterator[NewTensor]:
    """The tensors with an output matrix of its own, which chosen text needs, and what MTP layers need beside them."""
    yield from model.tensors
    if all(tensor.name != "output.weight" for tensor in model.tensors):
        yield NewTensor("output.weight", embedding.shape, embedding.type_name)
    parts = [(tensor.name, tensor.shape) for tensor in model.tensors]
    for name, shape in heads_embeddings(succession, parts, model.name):
        yield NewTensor(name, shape, embedding.type_name)
