"""Bytes of a catalog model's weights: its tensors in one format."""

from __future__ import annotations

import math
from collections.abc import Sequence

from velollm.facts import ModelFacts
from velollm.models.catalog_row import CatalogModel
from velollm.models.formats import Format, tensor_format
from velollm.models.header import TensorInfo
from velollm.models.layout import layout
from velollm.models.parts import weight_parts
from velollm.models.types import tensor_type

_OUTER = ("token_embd.", "output.", "per_layer_token_embd.")
_HALF_BITS = 16
# The tower of pictures and sound, as one tensor: the catalog knows its bytes alone.
_TOWER = "v.tower.weight"


def catalog_tensors(row: CatalogModel, form: Format) -> tuple[TensorInfo, ...]:
    """Every tensor of the model with its size in that format, in file order; towers of pictures as one."""
    grouped = row.heads // max(1, row.kv_heads_of(row.last_attention_layer()) or row.heads)
    experts = 0 if row.experts is None else row.experts.count
    tied = row.tied_embeddings and not row.output_in_file
    found: list[TensorInfo] = []
    offset = 0
    for name, shape in layout(row):
        kind = _stored_as(row, form, name) or tensor_format(
            form, name, shape, layers=row.layers, grouped_heads=grouped, experts=experts, tied=tied
        )
        elements = math.prod(shape)
        size = _size(form, name, shape, kind, elements)
        found.append(TensorInfo(name, shape, form.name if form.base is None else kind, offset, elements, size))
        offset += size
    tower = tower_bytes(row, form, offset)
    if tower:
        found.append(TensorInfo(_TOWER, (tower // 2,), "f16", offset, tower // 2, tower))
    return tuple(found)


def _stored_as(row: CatalogModel, form: Format, name: str) -> str | None:
    """The format in which the library's quantized files keep this tensor, where it is not the usual one."""
    if not form.changes_output or form.base is None:
        return None
    part = name.removesuffix(".weight").rpartition(".")[2]
    return row.stored_as.get(part)


def _size(form: Format, name: str, shape: tuple[int, ...], kind: str, elements: int) -> int:
    if form.bits_per_weight is not None:
        plain = len(shape) == 1 or name.startswith(_OUTER) or kind == "f32"
        return math.ceil(elements * (_HALF_BITS if plain else form.bits_per_weight) / 8)
    known = tensor_type(kind)
    if known is None:
        raise AssertionError(f"{form.name} names a number format that there is not: {kind}")
    return known.bytes_of(shape[0]) * (elements // shape[0])


def tower_bytes(row: CatalogModel, form: Format, text_bytes: int) -> int:
    """Bytes of what turns pictures or sound into embeddings, in 16 bits; 0 for a model that takes text alone.

    From published counts, else from what is left of the file's listed size; 0 where neither tells.
    """
    if not {"vision", "audio"} & set(row.capabilities):
        return 0
    text = row.parameters_from_shape or row.parameters
    if row.parameters_with_towers is not None:
        return 2 * max(0, row.parameters_with_towers - text)
    listed = row.listed_bytes(form.name)
    return 0 if listed is None else max(0, listed[0] - text_bytes) // 2 * 2


def reformatted(model: ModelFacts, tensors: Sequence[TensorInfo], form: Format) -> ModelFacts:
    """A model with 16-bit weights as it would be in another GGUF format, from the tensors that its header lists."""
    layers = model.layers or 0
    heads, kv_heads = max(model.heads or (1,)), max(model.kv_heads or (1,))
    tied = not any(info.name == "output.weight" for info in tensors)
    found: list[TensorInfo] = []
    offset = 0
    for info in tensors:
        kind = tensor_format(
            form,
            info.name,
            info.shape,
            layers=layers,
            grouped_heads=heads // max(1, kv_heads),
            experts=model.experts or 0,
            tied=tied,
        )
        size = _size(form, info.name, info.shape, kind, info.elements)
        found.append(TensorInfo(info.name, info.shape, kind, offset, info.elements, size))
        offset += size
    weights = _sums(tuple(found), layers, model.mtp_layers or 0)
    header_bytes = (model.file_bytes or 0) - (model.tensor_bytes or 0)
    file_bytes = None if model.file_bytes is None else header_bytes + offset
    update = {**weights, "file_bytes": file_bytes, "file_type": form.name.upper(), "path": None, "memory_factors": {}}
    return model.model_copy(update=update)


def catalog_weights(row: CatalogModel, form: Format) -> dict[str, object]:
    """The fields of `ModelFacts` that say how many bytes the weights take."""
    return _sums(catalog_tensors(row, form), row.layers, row.mtp_layers_in_file)


def _sums(tensors: tuple[TensorInfo, ...], layers: int, mtp_layers: int) -> dict[str, object]:
    by_type: dict[str, int] = {}
    for info in tensors:
        by_type[info.type_name] = by_type.get(info.type_name, 0) + (info.size_bytes or 0)
    return {
        "parameters": sum(info.elements for info in tensors),
        "tensor_bytes": sum(by_type.values()),
        "bytes_by_type": by_type,
        **weight_parts(tensors, layers, mtp_layers),
    }
