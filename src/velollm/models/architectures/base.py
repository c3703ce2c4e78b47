"""What architectures share: the metadata keys and tensors of attention, feed-forward parts, experts and Mamba-2 mixers.

Names of keys and tensors: src/llama-arch.cpp of llama.cpp b10488; which of them a model needs: ``load_hparams`` in
src/llama-model.cpp and ``load_arch_hparams`` and ``load_arch_tensors`` in src/models/*.cpp. Keys come without the
architecture's name before them; shapes have the row length first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from velollm.errors import VeloError
from velollm.models.shape import Experts, Latent, Recurrent, Shape
from velollm.models.writer import WriteValue

Key = tuple[str, WriteValue]
Part = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """One architecture: the keys of its metadata, and the tensors of its file in their order.

    ``mtp_layer``: what a layer that guesses further tokens has; None where models are made without such layers.
    """

    name: str
    metadata: Callable[[Shape], Iterator[Key]]
    layer: Callable[[Shape, int], Iterator[Part]]
    mtp_layer: Callable[[Shape], Iterator[Part]] | None = None

    def tensors(self, shape: Shape, *, tied: bool | None = None) -> Iterator[Part]:
        """All tensors; ``tied`` overrides whether the output matrix is the embedding matrix."""
        width = shape.embedding_length
        yield "token_embd.weight", (width, shape.vocab)
        yield "output_norm.weight", (width,)
        if not (shape.tied if tied is None else tied):
            yield "output.weight", (width, shape.vocab)
        if dict(shape.rope.scaling).get("type") == "llama3":
            yield "rope_freqs.weight", (shape.head_length // 2,)
        for layer in range(shape.layers):
            for name, size in self.layer(shape, layer):
                yield f"blk.{layer}.{name}", size
        for layer in range(shape.layers, shape.layers + self.mtp_layers(shape)):
            for name, size in self.mtp_layer(shape) if self.mtp_layer else ():
                yield f"blk.{layer}.{name}", size

    def mtp_layers(self, shape: Shape) -> int:
        """How many layers of a file of that shape guess further tokens."""
        return shape.mtp_layers if self.mtp_layer else 0


def size_keys(shape: Shape) -> Iterator[Key]:
    """Keys that every architecture needs."""
    yield "block_count", shape.layers
    yield "context_length", shape.context_train
    yield "embedding_length", shape.embedding_length
    yield "feed_forward_length", shape.feed_forward_length
    yield "attention.layer_norm_rms_epsilon", 1e-5
    yield "vocab_size", shape.vocab


def head_keys(shape: Shape) -> Iterator[Key]:
    """Heads and their sizes."""
    yield "attention.head_count", shape.heads
    yield "attention.head_count_kv", shape.kv_heads
    yield "attention.key_length", shape.head_length
    yield "attention.value_length", shape.value_head_length


def rope_keys(shape: Shape) -> Iterator[Key]:
    """Rotary positions; the factors of Llama 3 stand in a tensor of their own."""
    rope, scaling = shape.rope, dict(shape.rope.scaling)
    yield "rope.dimension_count", rope.dims or shape.head_length
    yield "rope.freq_base", rope.theta
    kind = scaling.get("type")
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(scaling["factor"])
    if kind == "yarn" and "original_context" in scaling:
        yield "rope.scaling.original_context_length", int(scaling["original_context"])


def expert_keys(experts: Experts) -> Iterator[Key]:
    """Experts without their widths, which differ in name."""
    yield "expert_count", experts.count
    yield "expert_used_count", experts.used


def recurrent_of(shape: Shape, architecture: str) -> Recurrent:
    """The state sizes of a shape. Raises `VeloError` where it has none."""
    if shape.recurrent is None:
        raise VeloError(f"the shape {shape.name} has no state sizes", f"a {architecture} model needs ssm in its shape")
    return shape.recurrent


def recurrent_keys(recurrent: Recurrent) -> Iterator[Key]:
    """Sizes of mixers."""
    yield "ssm.conv_kernel", recurrent.conv_kernel
    yield "ssm.inner_size", recurrent.inner_size
    yield "ssm.state_size", recurrent.state_size
    yield "ssm.time_step_rank", recurrent.time_step_rank
    yield "ssm.group_count", recurrent.group_count


def attention_parts(shape: Shape, *, head_norms: bool = False) -> Iterator[Part]:
    """Attention with separate query, key and value matrices; ``head_norms``: query and key are normed by head."""
    width, head, value = shape.embedding_length, shape.head_length, shape.value_head_length
    yield "attn_norm.weight", (width,)
    yield "attn_q.weight", (width, shape.heads * head)
    yield "attn_k.weight", (width, shape.kv_heads * head)
    yield "attn_v.weight", (width, shape.kv_heads * value)
    yield "attn_output.weight", (shape.heads * value, width)
    if head_norms:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)


def latent_parts(width: int, heads: int, latent: Latent) -> Iterator[Part]:
    """Multi-head latent attention, without its norm, in the form whose compressed cache the engine uses."""
    key = latent.plain_dims + latent.rope_dims
    if latent.query_rank:
        yield "attn_q_a.weight", (width, latent.query_rank)
        yield "attn_q_a_norm.weight", (latent.query_rank,)
        yield "attn_q_b.weight", (latent.query_rank, heads * key)
    else:
        yield "attn_q.weight", (width, heads * key)
    yield "attn_kv_a_mqa.weight", (width, latent.kv_rank + latent.rope_dims)
    yield "attn_kv_a_norm.weight", (latent.kv_rank,)
    yield "attn_k_b.weight", (latent.plain_dims, latent.kv_rank, heads)
    yield "attn_v_b.weight", (latent.kv_rank, latent.value_length, heads)
    yield "attn_output.weight", (heads * latent.value_length, width)


def feed_forward_parts(shape: Shape) -> Iterator[Part]:
    """A gated feed-forward part with its norm."""
    width, inner = shape.embedding_length, shape.feed_forward_length
    yield "ffn_norm.weight", (width,)
    yield "ffn_gate.weight", (width, inner)
    yield "ffn_up.weight", (width, inner)
    yield "ffn_down.weight", (inner, width)


def expert_parts(shape: Shape, experts: Experts) -> Iterator[Part]:
    """Routed experts with their norm and router, and the shared experts where there are any."""
    width, inner = shape.embedding_length, experts.feed_forward_length
    yield "ffn_norm.weight", (width,)
    yield "ffn_gate_inp.weight", (width, experts.count)
    yield "ffn_gate_exps.weight", (width, inner, experts.count)
    yield "ffn_up_exps.weight", (width, inner, experts.count)
    yield "ffn_down_exps.weight", (inner, width, experts.count)
    if experts.shared_length:
        yield "ffn_gate_shexp.weight", (width, experts.shared_length)
        yield "ffn_up_shexp.weight", (width, experts.shared_length)
        yield "ffn_down_shexp.weight", (experts.shared_length, width)


def mtp_parts(width: int) -> Iterator[Part]:
    """What joins a token and the state before it in an MTP layer, and the norm before the output matrix."""
    yield "nextn.eh_proj.weight", (2 * width, width)
    yield "nextn.enorm.weight", (width,)
    yield "nextn.hnorm.weight", (width,)
    yield "nextn.shared_head_norm.weight", (width,)


def delta_net_parts(shape: Shape, recurrent: Recurrent) -> Iterator[Part]:
    """A gated delta net; ``ssm_a`` has no ``weight`` in its name."""
    width, heads, state = shape.embedding_length, recurrent.time_step_rank, recurrent.state_size
    values = heads * state
    convolved = values + 2 * recurrent.group_count * state
    yield "attn_norm.weight", (width,)
    yield "attn_qkv.weight", (width, convolved)
    yield "attn_gate.weight", (width, values)
    yield "ssm_conv1d.weight", (recurrent.conv_kernel, convolved)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (heads,)
    yield "ssm_beta.weight", (width, heads)
    yield "ssm_alpha.weight", (width, heads)
    yield "ssm_norm.weight", (state,)
    yield "ssm_out.weight", (values, width)


def mixer_parts(shape: Shape, recurrent: Recurrent) -> Iterator[Part]:
    """A Mamba-2 mixer; ``ssm_a`` and ``ssm_d`` have no ``weight`` in their names."""
    width, inner, heads = shape.embedding_length, recurrent.inner_size, recurrent.time_step_rank
    convolved = inner + 2 * recurrent.group_count * recurrent.state_size
    yield "attn_norm.weight", (width,)
    yield "ssm_in.weight", (width, inner + convolved + heads)
    yield "ssm_conv1d.weight", (recurrent.conv_kernel, convolved)
    yield "ssm_conv1d.bias", (convolved,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // recurrent.group_count, recurrent.group_count)
    yield "ssm_out.weight", (inner, width)
