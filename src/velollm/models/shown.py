"""A model as an Ollama server describes it: its header without its file, which may be out of reach."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts
from velollm.models.header import GgufHeader, MetaValue, Passed, TensorInfo
from velollm.models.types import tensor_type

# Longer lists are vocabularies: only their length tells something.
_KEPT_ARRAY = 1024
_MAX_TENSORS = 65_536
# JSON does not tell 10000 from 10000.0; the engine takes these keys as float32 only (src/llama-model.cpp).
_FRACTIONS = re.compile(
    r"(epsilon|eps|freq_base\w*|scale|scale_linear|factor|attn_factor|alpha|softcapping|multiplier|clamp_kqv|"
    r"max_alibi_bias|beta_fast|beta_slow|ext_factor|yarn_\w+|temperature_scale)$"
)


def parse_shown_header(data: Mapping[str, Any], name: str, file_bytes: int | None = None) -> GgufHeader | None:
    """The header of a model from a verbose answer of `/api/show`; None where it holds none.

    ``model_info`` are the keys of the header, ``tensors`` their names, types and shapes (Ollama v0.33.0-rc2,
    api/types.go, `ShowResponse`). ``file_bytes`` is what `/api/tags` says of the size.
    """
    info, tensors = data.get("model_info"), data.get("tensors")
    if not isinstance(info, dict) or not isinstance(tensors, list) or not tensors:
        return None
    metadata = {str(key): kept for key, value in info.items() if (kept := _metadata_value(key, value)) is not None}
    found = tuple(tensor for item in tensors[:_MAX_TENSORS] if (tensor := _tensor(item)) is not None)
    return GgufHeader(Path(name), file_bytes or 0, 3, metadata, found, 0)


def parse_shown(data: Mapping[str, Any], name: str, file_bytes: int | None = None) -> ModelFacts | None:
    """Facts from an answer that `parse_shown_header` reads; None where it holds no header. ``path`` stays None.

    Raises:
        VeloError: the header claims more layers than any engine loads.
    """
    header = parse_shown_header(data, name, file_bytes)
    if header is None:
        return None
    return model_facts(header, name).model_copy(update={"path": None, "file_bytes": file_bytes})


def _metadata_value(key: str, value: object) -> MetaValue | None:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if _FRACTIONS.search(key):
            return float(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(value, list):
        return None
    numbers = tuple(item for item in value[:_KEPT_ARRAY] if isinstance(item, bool | int | float))
    return numbers if len(numbers) == len(value) else Passed("array", len(value))


def _tensor(item: object) -> TensorInfo | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not isinstance(item.get("shape"), list):
        return None
    shape = tuple(size for size in item["shape"] if isinstance(size, int) and not isinstance(size, bool) and size > 0)
    if not shape or len(shape) != len(item["shape"]):
        return None
    name = str(item.get("type", "")).lower()
    kind, elements = tensor_type(name), math.prod(shape)
    size_bytes = None if kind is None else kind.bytes_of(shape[0]) * (elements // shape[0])
    return TensorInfo(item["name"], shape, name, 0, elements, size_bytes)
