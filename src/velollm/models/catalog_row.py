"""One row of the catalog of models: a shape, and what is published of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from velollm.facts import Frozen


class MlaShape(Frozen):
    """Multi-head latent attention: ranks, and the parts of a head with and without position, before compression."""

    kv_lora_rank: int
    nope_length: int
    rope_length: int
    value_length: int
    q_lora_rank: int | None = None


class SsmShape(Frozen):
    """Recurrent layers. ``shortconv`` has a kernel alone."""

    kind: Literal["mamba2", "gated_delta_net", "shortconv"]
    conv_kernel: int
    inner_size: int | None = None
    state_size: int | None = None
    time_step_rank: int | None = None
    group_count: int | None = None


class ExpertShape(Frozen):
    """Mixture of experts. ``length`` is the width of one expert, ``shared_length`` of all shared ones together."""

    count: int
    used: int
    length: int
    shared: int = 0
    shared_length: int | None = None
    leading_dense_layers: int = 0
    dense_parallel_length: int | None = None
    latent_length: int | None = None


class EmbeddingShape(Frozen):
    """A second embedding with ``length`` values for each layer and token."""

    length: int
    vocab: int


class CatalogModel(Frozen):
    """One row of the catalog; its fields are explained at the head of `configs/models.yaml`."""

    id: str
    ollama: tuple[str, ...] = ()
    hf: str | None = None
    architecture: str
    kind: Literal["dense", "moe", "hybrid", "hybrid-moe", "ssm"]
    parameters: int
    parameters_basis: Literal["published", "shape"]
    parameters_from_shape: int | None = None
    parameters_with_towers: int | None = None
    parameters_active: int | None = None
    layers: int
    layer_pattern: str | None = None
    attention_layers: int | None = None
    attention_kv_heads: int | None = None
    embedding_length: int
    feed_forward_length: int | tuple[int, ...] | None = None
    heads: int
    kv_heads: int | tuple[int, ...] | None = None
    key_length: int | None = None
    value_length: int | None = None
    key_length_swa: int | None = None
    value_length_swa: int | None = None
    value_is_key_on_full_layers: bool = False
    kv_shared_layers: int | None = None
    sliding_window_tokens: int | None = None
    vocab: int
    tied_embeddings: bool
    context_train_tokens: int
    mtp_layers: int | None = None
    mla: MlaShape | None = None
    ssm: SsmShape | None = None
    experts: ExpertShape | None = None
    per_layer_embedding: EmbeddingShape | None = None
    capabilities: tuple[str, ...] = ()
    purpose: Literal["code", "vision"] | None = None
    license: str
    released: str | None = None
    default_quant: str | None = None
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    file_gb: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    stored_as: Mapping[str, str] = field(default_factory=dict)
    output_in_file: bool = False
    mtp_in_file: bool = True
    basis: Literal["config", "page", "memory"]
    disputed: Mapping[str, str] = field(default_factory=dict)
    source: str

    @property
    def name(self) -> str:
        """The Ollama name where the library has the model, else the catalog's own."""
        return self.ollama[0] if self.ollama else self.id

    @property
    def pattern(self) -> str:
        """One letter for each layer. Where it is not known which layers attend, they are spread evenly."""
        if self.layer_pattern is not None:
            return self.layer_pattern
        if self.attention_layers is None:
            return "A" * self.layers
        step = self.layers / self.attention_layers
        attending = {int((index + 1) * step) - 1 for index in range(self.attention_layers)}
        return "".join("A" if layer in attending else "R" for layer in range(self.layers))

    @property
    def mtp_layers_in_file(self) -> int:
        """MTP layers that the library's files hold."""
        return (self.mtp_layers or 0) if self.mtp_in_file else 0

    def heads_of(self, layer: int) -> int:
        """Query heads of a layer."""
        return self.heads

    def kv_heads_of(self, layer: int) -> int:
        """KV heads of a layer, as a GGUF file gives them: 0 in one that does not attend, 1 for a compressed cache."""
        if self.pattern[layer] not in "ASH":
            return 0
        if self.mla is not None:
            return 1
        if isinstance(self.kv_heads, tuple):
            return self.kv_heads[layer]
        heads = self.kv_heads if self.kv_heads is not None else self.attention_kv_heads
        return self.heads if heads is None else heads

    def head_lengths(self, *, sliding: bool) -> tuple[int, int]:
        """Values of one K and one V head."""
        size = self.embedding_length // self.heads if self.heads else 0
        key = self.key_length if self.key_length is not None else size
        value = self.value_length if self.value_length is not None else size
        if not sliding:
            return key, value
        return self.key_length_swa or key, self.value_length_swa or value

    def feed_forward_of(self, layer: int) -> int:
        """Width of a layer's dense feed-forward part; 0 where there is none."""
        if isinstance(self.feed_forward_length, tuple):
            return self.feed_forward_length[layer]
        return self.feed_forward_length or 0

    def last_attention_layer(self) -> int:
        """Index of the last layer with full attention, or the last layer."""
        return max(self.pattern.rfind("A"), self.pattern.rfind("H"), 0) or self.layers - 1

    def listed_bytes(self, form: str) -> tuple[int, Literal["exact", "rounded"]] | None:
        """What a listing says of the file's size in that format, and how well."""
        if (exact := self.file_bytes.get(form)) is not None:
            return exact, "exact"
        rounded = self.file_gb.get(form)
        return None if rounded is None else (round(rounded * 1e9), "rounded")
