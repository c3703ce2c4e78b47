"""What a GGUF header tells of a model, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velollm.errors import VeloError
from velollm.facts import MadeFacts, MlaFacts, ModelFacts, SsmFacts
from velollm.models import layers as rules
from velollm.models.header import GgufHeader, MetaValue, Passed, TensorInfo, read_gguf
from velollm.models.layers import count
from velollm.models.parts import weight_parts
from velollm.models.types import FILE_TYPES

__all__ = ["GgufHeader", "Passed", "TensorInfo", "model_facts", "read_gguf"]

# llama.cpp refuses more than 512 (LLAMA_MAX_LAYERS in src/llama-hparams.h).
_MAX_LAYERS = 512


class _Keys:
    """The metadata of one architecture, by key without its prefix; a value of another kind counts as absent."""

    def __init__(self, metadata: Mapping[str, MetaValue], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = architecture

    def number(self, key: str) -> int | None:
        value = self._metadata.get(f"{self._prefix}.{key}")
        return value if count(value) else None

    def per_layer(self, key: str, layers: int) -> tuple[int, ...] | None:
        """One number for each layer, from a single number or a list that is long enough."""
        value = self._metadata.get(f"{self._prefix}.{key}")
        if count(value):
            return (value,) * layers
        if isinstance(value, tuple) and len(value) >= layers and all(count(item) for item in value[:layers]):
            return tuple(int(item) for item in value[:layers])
        return None


def model_facts(header: GgufHeader, name: str) -> ModelFacts:
    """The model that a header describes; what the header does not tell is None.

    ``layers`` are without MTP layers, which GGUF counts among its blocks. A layer that only recurs has 0 KV
    heads. ``mla`` is set where the file is in the form whose compressed cache llama.cpp uses
    (``key_length_mla``, src/models/deepseek2.cpp); older files of such models keep full K and V.
    Sums over tensors stay unknown for one part of a split model.

    Raises:
        VeloError: the header claims more layers than any engine loads.
    """
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    architecture = architecture if isinstance(architecture, str) else None
    facts: dict[str, Any] = {
        "name": name,
        "path": str(header.path),
        "file_bytes": header.file_bytes,
        "architecture": architecture,
        "vocab": _vocab(header, architecture),
        "file_type": _file_type(metadata),
        "has_chat_template": "tokenizer.chat_template" in metadata,
        "made": _made(metadata),
        **_sums(header),
    }
    if architecture is not None:
        facts.update(_shape(header, architecture))
    layers, mtp_layers = facts.get("layers"), facts.get("mtp_layers") or 0
    if isinstance(layers, int) and isinstance(mtp_layers, int) and facts.get("tensor_bytes") is not None:
        facts["expert_layers"] = _expert_layers(header.tensors, layers)
        facts.update(weight_parts(header.tensors, layers, min(mtp_layers, _MAX_LAYERS)))
    # Nothing here is validated: every type is right by now.
    return ModelFacts(**facts)


def _shape(header: GgufHeader, architecture: str) -> dict[str, object]:
    keys = _Keys(header.metadata, architecture)
    shape: dict[str, object] = {
        "embedding_length": keys.number("embedding_length"),
        "context_train": keys.number("context_length"),
        "experts": keys.number("expert_count"),
        "experts_used": keys.number("expert_used_count"),
        "expert_feed_forward_length": keys.number("expert_feed_forward_length"),
        "shared_expert_feed_forward_length": _shared_width(keys, header.tensors),
        "dense_layers": keys.number("leading_dense_block_count"),
        "mtp_layers": keys.number("nextn_predict_layers"),
        "mla": _mla(keys),
        "ssm": _ssm(keys),
    }
    blocks = keys.number("block_count")
    if blocks is None:
        return shape
    if blocks > _MAX_LAYERS:
        raise VeloError(
            f"{header.path} is not a usable GGUF model: it claims {blocks} layers", "download or make the file again"
        )
    shape.update(
        _layers(header.metadata, keys, architecture, max(0, blocks - (keys.number("nextn_predict_layers") or 0)))
    )
    return shape


def _layers(metadata: Mapping[str, MetaValue], keys: _Keys, architecture: str, layers: int) -> dict[str, object]:
    """All that is told per layer."""
    heads = keys.per_layer("attention.head_count", layers)
    kv_heads = keys.per_layer("attention.head_count_kv", layers)
    if kv_heads is None and f"{architecture}.attention.head_count_kv" not in metadata:
        kv_heads = heads
    feed_forward = keys.per_layer("feed_forward_length", layers)
    recurrent = rules.recurrent_layers(architecture, metadata, kv_heads, feed_forward, layers)
    if recurrent is not None and any(recurrent):
        kv_heads = _without_recurrent(architecture, kv_heads, recurrent)
    window, sliding = rules.sliding_layers(architecture, metadata, layers)
    head_size = _head_size(keys, heads)
    return {
        "layers": layers,
        "feed_forward_length": feed_forward,
        "heads": heads,
        "kv_heads": kv_heads,
        "key_length": _first(keys.number("attention.key_length"), head_size),
        "value_length": _first(keys.number("attention.value_length"), head_size),
        "key_length_swa": keys.number("attention.key_length_swa"),
        "value_length_swa": keys.number("attention.value_length_swa"),
        "sliding_window": window,
        "sliding_layers": sliding,
        "recurrent_layers": recurrent,
        "kv_shared_layers": rules.shared_kv_layers(architecture, metadata, layers),
    }


def _without_recurrent(
    architecture: str, kv_heads: tuple[int, ...] | None, recurrent: tuple[bool, ...]
) -> tuple[int, ...] | None:
    """KV heads with 0 in the layers that only recur, whatever single number the file gives for all."""
    if all(recurrent) and not rules.attends(architecture, True):
        return (0,) * len(recurrent)
    if kv_heads is None:
        return None
    return tuple(n if rules.attends(architecture, r) else 0 for n, r in zip(kv_heads, recurrent, strict=True))


def _head_size(keys: _Keys, heads: tuple[int, ...] | None) -> int | None:
    """Embedding length by heads: the engine's size where the file names none (src/llama-model.cpp, load_hparams)."""
    embedding = keys.number("embedding_length")
    most = max(heads, default=0) if heads else 0
    return embedding // most if embedding and most else None


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _expert_layers(tensors: tuple[TensorInfo, ...], layers: int) -> tuple[bool, ...]:
    """Layers that have a router."""
    names = {info.name for info in tensors}
    return tuple(f"blk.{layer}.ffn_gate_inp.weight" in names for layer in range(layers))


def _mla(keys: _Keys) -> MlaFacts | None:
    rank, row = keys.number("attention.kv_lora_rank"), keys.number("attention.key_length")
    if rank is None or keys.number("attention.key_length_mla") is None:
        return None
    dims = keys.number("rope.dimension_count")
    if dims is None:
        dims = row - rank if row is not None and row >= rank else None
    if dims is None:
        return None
    return MlaFacts(
        kv_lora_rank=rank,
        rope_dims=dims,
        q_lora_rank=keys.number("attention.q_lora_rank"),
        key_length=keys.number("attention.key_length_mla"),
        value_length=keys.number("attention.value_length_mla"),
    )


def _shared_width(keys: _Keys, tensors: tuple[TensorInfo, ...]) -> int | None:
    """Width of the shared experts: as their matrix has it, else as the metadata says."""
    shapes = (info.shape for info in tensors if info.name.endswith(".ffn_down_shexp.weight"))
    found = next((shape[0] for shape in shapes), None)
    if found is not None or tensors:
        return found
    return keys.number("expert_shared_feed_forward_length")


def _ssm(keys: _Keys) -> SsmFacts | None:
    """State sizes; a short convolution (lfm2) is a state of ``conv_kernel`` − 1 rows of the embedding's width."""
    if (kernel := keys.number("shortconv.l_cache")) is not None:
        return SsmFacts(conv_kernel=kernel, inner_size=keys.number("embedding_length"), state_size=0, group_count=0)
    names = ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
    values = {name: keys.number(f"ssm.{name}") for name in names}
    if all(value is None for value in values.values()):
        return None
    return SsmFacts(**values)


def _vocab(header: GgufHeader, architecture: str | None) -> int | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Passed):
        return tokens.count
    named = header.metadata.get(f"{architecture}.vocab_size")
    if count(named):
        return named
    rows = (info.shape[1] for info in header.tensors if info.name == "token_embd.weight" and len(info.shape) == 2)
    return next(rows, None)


def _file_type(metadata: Mapping[str, MetaValue]) -> str | None:
    number = metadata.get("general.file_type")
    return FILE_TYPES.get(number) if count(number) else None


def _made(metadata: Mapping[str, MetaValue]) -> MadeFacts | None:
    """What a file made here says of its text (`synthetic`)."""
    mark = "velollm.synthetic"
    if mark not in metadata:
        return None
    kind, like = metadata.get(f"{mark}.kind"), metadata.get(f"{mark}.like")
    period = metadata.get(f"{mark}.period")

    def share(key: str) -> float | None:
        value = metadata.get(f"{mark}.{key}")
        # float32 in the file: 0.8 comes back as 0.800000012.
        return round(value, 6) if isinstance(value, float) else None

    return MadeFacts(
        kind=kind if isinstance(kind, str) else "random",
        predictability=share("predictability"),
        period=period if count(period) else None,
        agreement=share("agreement"),
        like=like if isinstance(like, str) else None,
        heads_agreement=share("heads_agreement"),
    )


def _sums(header: GgufHeader) -> dict[str, object]:
    """Parameters and bytes over all tensors; empty for a part of a split model."""
    parts = header.metadata.get("split.count")
    if count(parts) and parts > 1:
        return {}
    by_type: dict[str, int] = {}
    for info in header.tensors:
        if info.size_bytes is not None:
            by_type[info.type_name] = by_type.get(info.type_name, 0) + info.size_bytes
    whole = all(info.size_bytes is not None for info in header.tensors)
    return {
        "parameters": sum(info.elements for info in header.tensors),
        "tensor_bytes": sum(by_type.values()) if whole else None,
        "bytes_by_type": by_type,
    }
