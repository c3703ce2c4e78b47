"""The shape of a model to be made: what of a catalog entry decides its tensors, its caches and its cost per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from velollm.errors import VeloError
from velollm.models.catalog_row import CatalogModel, ExpertShape

_RECURRENT = "R"


@dataclass(frozen=True)
class Rope:
    """Rotary positions: base frequencies, rotated values of a head, and how longer contexts were reached.

    ``sections``: pairs of values that turn with time, height and width, where pictures have positions of their own.
    """

    theta: float = 10000.0
    theta_swa: float | None = None
    dims: int | None = None
    scaling: tuple[tuple[str, str | float], ...] = ()
    applied: bool = True
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts; ``shared_length`` is the width of all shared experts together."""

    count: int
    used: int
    feed_forward_length: int
    shared: int = 0
    shared_length: int = 0
    leading_dense_layers: int = 0


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: ranks of the compressed query and cache, and the parts of a head."""

    kv_rank: int
    plain_dims: int
    rope_dims: int
    value_length: int
    query_rank: int | None = None


@dataclass(frozen=True)
class Recurrent:
    """A mixer: of Mamba-2, or a gated delta net (``kind``); ``time_step_rank`` is its number of heads."""

    inner_size: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    group_count: int
    kind: str = "mamba2"


@dataclass(frozen=True)
class Shape:
    """The shape of a model; ``context_train`` is only declared, as nothing was trained.

    ``kv_heads`` counts in layers that attend. ``layer_pattern`` has one letter a layer as in the model catalog (R
    recurs); empty where no layer does. ``tied``: the output matrix is the embedding matrix. ``mtp_layers``: layers
    behind the others that guess further tokens, which only some architectures are made with.
    """

    name: str
    layers: int
    embedding_length: int
    heads: int
    kv_heads: int
    feed_forward_length: int
    vocab: int
    context_train: int
    architecture: str = "llama"
    key_length: int | None = None
    value_length: int | None = None
    tied: bool = False
    rope: Rope = Rope()
    layer_pattern: str = ""
    sliding_window: int | None = None
    experts: Experts | None = None
    latent: Latent | None = None
    recurrent: Recurrent | None = None
    mtp_layers: int = 0

    @property
    def head_length(self) -> int:
        """Values of a key of one head."""
        return self.key_length or self.embedding_length // max(1, self.heads)

    @property
    def value_head_length(self) -> int:
        """Values of a value of one head."""
        return self.value_length or self.head_length

    def recurs(self, layer: int) -> bool:
        """Does that layer keep a state in place of a KV cache?"""
        return self.layer_pattern[layer : layer + 1] == _RECURRENT


def cut_layers(shape: Shape, layers: int) -> Shape:
    """The same shape with only its first ``layers`` layers. Raises `VeloError` for a number it does not have."""
    if not 1 <= layers <= shape.layers:
        raise VeloError(f"{shape.name} has {shape.layers} layers, not {layers}", f"give 1 to {shape.layers}")
    if layers == shape.layers:
        return shape
    return replace(shape, name=f"{shape.name}-{layers}l", layers=layers, layer_pattern=shape.layer_pattern[:layers])


def shape_of_row(row: CatalogModel, entry: Mapping[str, Any]) -> Shape:
    """The shape of a model of the catalog; ``entry`` has what the catalog does not need (`configs/families.yaml`)."""
    experts, mla, ssm = row.experts, row.mla, row.ssm
    kv_heads = row.attention_kv_heads if row.kv_heads is None else row.kv_heads
    return Shape(
        name=row.id,
        layers=row.layers,
        embedding_length=row.embedding_length,
        heads=row.heads,
        kv_heads=_largest(kv_heads or 0),
        feed_forward_length=_largest(row.feed_forward_length or 0),
        vocab=row.vocab,
        context_train=row.context_train_tokens,
        architecture=row.architecture,
        key_length=row.key_length,
        value_length=row.value_length,
        tied=row.tied_embeddings,
        rope=_rope(entry.get("rope") or {}),
        layer_pattern=row.layer_pattern or "",
        sliding_window=row.sliding_window_tokens,
        experts=None if experts is None else _experts_of(experts),
        latent=None
        if mla is None
        else Latent(mla.kv_lora_rank, mla.nope_length, mla.rope_length, mla.value_length, mla.q_lora_rank),
        recurrent=None if ssm is None else _recurrent(ssm.model_dump()),
        mtp_layers=row.mtp_layers or 0,
    )


def _experts_of(row: ExpertShape) -> Experts:
    shared_length = row.shared_length or row.shared * row.length
    return Experts(row.count, row.used, row.length, row.shared, shared_length, row.leading_dense_layers)


def parse_shape(entry: Mapping[str, Any]) -> Shape:
    """The shape that a whole entry describes (``configs/tiny-families.yaml`` shows the fields)."""
    kv_heads = entry.get("kv_heads") or 0
    width, feed_forward = entry["embedding_length"], entry.get("feed_forward_length") or 0
    return Shape(
        name=entry["id"],
        layers=entry["layers"],
        embedding_length=width,
        heads=_largest(entry.get("heads") or 0),
        kv_heads=_largest(kv_heads),
        feed_forward_length=_largest(feed_forward),
        vocab=entry["vocab"],
        context_train=entry["context_train"],
        architecture=entry["arch"],
        key_length=entry.get("key_length"),
        value_length=entry.get("value_length"),
        tied=bool(entry.get("tied_embeddings")),
        rope=_rope(entry.get("rope") or {}),
        layer_pattern=entry.get("layer_pattern") or "",
        sliding_window=(entry.get("sliding_window") or {}).get("window"),
        experts=_experts(entry),
        latent=_latent(entry.get("mla")),
        recurrent=_recurrent(entry.get("ssm")),
        mtp_layers=entry.get("mtp_layers") or 0,
    )


def _largest(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value)


def _rope(fields: Mapping[str, Any]) -> Rope:
    scaling = fields.get("scaling") or {}
    return Rope(
        theta=float(fields.get("theta") or 10000.0),
        theta_swa=fields.get("theta_swa"),
        dims=fields.get("dims"),
        scaling=tuple((key, value if isinstance(value, str) else float(value)) for key, value in scaling.items()),
        applied="NoPE" not in (fields.get("note") or ""),
        sections=tuple(fields.get("sections") or ()),
    )


def _experts(entry: Mapping[str, Any]) -> Experts | None:
    if not entry.get("expert_count"):
        return None
    length = entry.get("expert_ff") or entry["feed_forward_length"]
    shared = entry.get("expert_shared") or 0
    return Experts(
        count=entry["expert_count"],
        used=entry["expert_used"],
        feed_forward_length=length,
        shared=shared,
        shared_length=entry.get("expert_shared_ff") or shared * length,
        leading_dense_layers=entry.get("leading_dense_layers") or 0,
    )


def _latent(fields: Mapping[str, Any] | None) -> Latent | None:
    if not fields:
        return None
    return Latent(
        kv_rank=fields["kv_lora_rank"],
        plain_dims=fields["qk_nope_head_dim"],
        rope_dims=fields["qk_rope_head_dim"],
        value_length=fields["v_head_dim"],
        query_rank=fields.get("q_lora_rank"),
    )


def _recurrent(fields: Mapping[str, Any] | None) -> Recurrent | None:
    if not fields or fields.get("kind") not in ("mamba2", "gated_delta_net"):
        return None
    names = ("inner_size", "state_size", "conv_kernel", "time_step_rank", "group_count", "kind")
    return Recurrent(*(fields[name] for name in names))
