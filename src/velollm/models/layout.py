"""The tensors of a model of the catalog, from its shape alone.

Names and sizes follow ``load_arch_tensors`` of llama.cpp b10488 (src/models/*.cpp), one matrix for each of Q, K and V
but where the engine wants them fused. Tensors of a few hundred values (scales, biases of gates) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from velollm.models.architectures.base import latent_parts
from velollm.models.catalog_row import CatalogModel, MlaShape
from velollm.models.shape import Latent

NamedShape = tuple[str, tuple[int, ...]]

# One block a layer: attention, recurrence, feed-forward or experts (src/models/nemotron-h.cpp).
_ONE_BLOCK = frozenset({"nemotron_h", "nemotron_h_moe"})
# A feed-forward part without gate.
_UNGATED = frozenset({"starcoder2", "nemotron_h", "nemotron_h_moe"})
_QKV_BIAS = frozenset({"qwen2", "starcoder2", "gpt-oss", "glm4moe"})
_HEAD_NORMS = frozenset({"qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "qwen3next", "qwen35", "qwen35moe", "gemma3"})
_HEAD_NORMS_TOO = frozenset({"gemma3n", "gemma4", "lfm2", "lfm2moe"})
# A gate as wide as Q, in the same matrix (src/models/qwen3next.cpp, qwen35.cpp).
_GATED_ATTENTION = frozenset({"qwen3next", "qwen35", "qwen35moe"})
# Q, K and V in one matrix, gate and up in another (src/models/phi3.cpp).
_FUSED = frozenset({"phi3"})
# Width of the low-rank part and number of streams of Gemma 3n (src/models/gemma3n.cpp).
_LAUREL_RANK, _ALTUP_STREAMS = 64, 4


def layout(row: CatalogModel) -> Iterator[NamedShape]:
    """Name and shape (row length first) of every tensor of the language model, MTP layers last."""
    width = row.embedding_length
    yield "token_embd.weight", (width, row.vocab)
    yield "output_norm.weight", (width,)
    if not row.tied_embeddings or row.output_in_file:
        yield "output.weight", (width, row.vocab)
    yield from _per_layer_embedding(row)
    for layer, letter in enumerate(row.pattern):
        for name, shape in _layer(row, layer, letter):
            yield f"blk.{layer}.{name}", shape
    for layer in range(row.layers, row.layers + row.mtp_layers_in_file):
        for name, shape in _mtp_layer(row):
            yield f"blk.{layer}.{name}", shape


def _per_layer_embedding(row: CatalogModel) -> Iterator[NamedShape]:
    if row.per_layer_embedding is None:
        return
    values = row.per_layer_embedding.length * row.layers
    yield "per_layer_token_embd.weight", (values, row.per_layer_embedding.vocab)
    yield "per_layer_model_proj.weight", (row.embedding_length, values)
    if row.architecture == "gemma3n":
        square = (row.embedding_length, row.embedding_length, _ALTUP_STREAMS - 1)
        yield "altup_proj.weight", square
        yield "altup_unembd_proj.weight", square


def _layer(row: CatalogModel, layer: int, letter: str) -> Iterator[NamedShape]:
    yield "attn_norm.weight", (row.embedding_length,)
    if letter in "ASH":
        yield from _attention(row, layer, sliding=letter == "S")
    if letter in "RH":
        yield from _recurrence(row)
    if row.architecture in _ONE_BLOCK:
        if letter in "FE":
            yield from _feed_forward(row, layer, experts=letter == "E")
        return
    if row.architecture != "mamba2":
        yield "ffn_norm.weight", (row.embedding_length,)
        yield from _feed_forward(row, layer, experts=row.experts is not None)
    if row.per_layer_embedding is not None:
        yield "inp_gate.weight", (row.embedding_length, row.per_layer_embedding.length)
        yield "proj.weight", (row.per_layer_embedding.length, row.embedding_length)
    if row.architecture == "gemma3n":
        yield "laurel_l.weight", (row.embedding_length, _LAUREL_RANK)
        yield "laurel_r.weight", (_LAUREL_RANK, row.embedding_length)


def _attention(row: CatalogModel, layer: int, *, sliding: bool) -> Iterator[NamedShape]:
    width, heads, kv_heads = row.embedding_length, row.heads_of(layer), row.kv_heads_of(layer)
    if row.mla is not None:
        yield from latent_parts(width, heads, _latent(row.mla))
        return
    key, value = row.head_lengths(sliding=sliding)
    gates = 2 if row.architecture in _GATED_ATTENTION else 1
    if row.architecture in _FUSED:
        yield "attn_qkv.weight", (width, heads * key + kv_heads * (key + value))
        yield "attn_output.weight", (heads * value, width)
        return
    yield "attn_q.weight", (width, heads * key * gates)
    own_kv = row.architecture != "gemma4" or layer < row.layers - (row.kv_shared_layers or 0)
    if own_kv:
        yield "attn_k.weight", (width, kv_heads * key)
        if sliding or not row.value_is_key_on_full_layers:
            yield "attn_v.weight", (width, kv_heads * value)
    yield "attn_output.weight", (heads * value, width)
    if row.architecture in _QKV_BIAS:
        for name, length in (("q", heads * key), ("k", kv_heads * key), ("v", kv_heads * value)):
            yield f"attn_{name}.bias", (length,)
    if row.architecture in _HEAD_NORMS | _HEAD_NORMS_TOO:
        yield "attn_q_norm.weight", (key,)
        yield "attn_k_norm.weight", (key,)


def _latent(mla: MlaShape) -> Latent:
    return Latent(mla.kv_lora_rank, mla.nope_length, mla.rope_length, mla.value_length, mla.q_lora_rank)


def _recurrence(row: CatalogModel) -> Iterator[NamedShape]:
    ssm, width = row.ssm, row.embedding_length
    if ssm is None:
        return
    if ssm.kind == "shortconv":
        yield "shortconv.in_proj.weight", (width, 3 * width)
        yield "shortconv.conv.weight", (ssm.conv_kernel, width)
        yield "shortconv.out_proj.weight", (width, width)
        return
    inner, state = ssm.inner_size or 0, ssm.state_size or 0
    groups, steps = ssm.group_count or 0, ssm.time_step_rank or 0
    mixed = inner + 2 * groups * state
    yield "ssm_conv1d.weight", (ssm.conv_kernel, mixed)
    if ssm.kind == "gated_delta_net":
        yield "attn_qkv.weight", (width, mixed)
        yield "attn_gate.weight", (width, inner)
        yield "ssm_beta.weight", (width, steps)
        yield "ssm_alpha.weight", (width, steps)
    else:
        yield "ssm_in.weight", (width, inner + mixed + steps)
        yield "ssm_conv1d.bias", (mixed,)
        yield "ssm_norm.weight", (inner,)
    yield "ssm_out.weight", (inner, width)


def _feed_forward(row: CatalogModel, layer: int, *, experts: bool) -> Iterator[NamedShape]:
    parts = row.experts
    if not experts or parts is None or layer < parts.leading_dense_layers:
        yield from _dense(row, row.feed_forward_of(layer), "")
        return
    width = row.embedding_length
    inner = parts.latent_length or width
    yield "ffn_gate_inp.weight", (width, parts.count)
    if parts.latent_length is not None:
        yield "ffn_latent_down.weight", (width, inner)
        yield "ffn_latent_up.weight", (inner, width)
    if row.architecture not in _UNGATED:
        yield "ffn_gate_exps.weight", (inner, parts.length, parts.count)
    yield "ffn_up_exps.weight", (inner, parts.length, parts.count)
    yield "ffn_down_exps.weight", (parts.length, inner, parts.count)
    if row.architecture == "gpt-oss":
        for name, length in (("gate", parts.length), ("up", parts.length), ("down", width)):
            yield f"ffn_{name}_exps.bias", (length, parts.count)
    if parts.shared_length:
        yield from _dense(row, parts.shared_length, "_shexp")
    if parts.dense_parallel_length:
        yield from _dense(row, parts.dense_parallel_length, "")


def _dense(row: CatalogModel, inner: int, suffix: str) -> Iterator[NamedShape]:
    width = row.embedding_length
    if row.architecture in _FUSED:
        yield "ffn_up.weight", (width, 2 * inner)
        yield "ffn_down.weight", (inner, width)
        return
    if row.architecture not in _UNGATED:
        yield f"ffn_gate{suffix}.weight", (width, inner)
    yield f"ffn_up{suffix}.weight", (width, inner)
    yield f"ffn_down{suffix}.weight", (inner, width)


def _mtp_layer(row: CatalogModel) -> Iterator[NamedShape]:
    """A layer of the trunk's kind with full attention, and what joins token and state (``nextn.eh_proj``)."""
    width = row.embedding_length
    yield "nextn.eh_proj.weight", (2 * width, width)
    last = row.layers - 1
    yield from _attention(row, row.last_attention_layer(), sliding=False)
    yield from _feed_forward(row, last, experts=row.experts is not None)
