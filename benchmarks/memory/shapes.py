"""Empty GGUF files with the shapes of models: a header, and tensor data that is a hole in the file.

An engine loads them and prints the sizes of its buffers; what it would write has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from velollm.models.vocabulary import BEGIN_ID, END_ID, UNKNOWN_ID, make_vocabulary
from velollm.models.writer import NewTensor, WriteValue, data_bytes, render_header


@dataclass(frozen=True)
class Shape:
    """One model's shape. ``fitted``: looked at while the arithmetic was written; the others were held out."""

    name: str
    architecture: str
    layers: int
    width: int
    vocab: int
    heads: int = 0
    kv_heads: int = 0
    head: int = 0
    inner: int = 0
    experts: int = 0
    used: int = 0
    expert_inner: int = 0
    shared_inner: int = 0
    dense_layers: int = 0
    window: int = 0
    attention_layers: tuple[int, ...] = ()
    mla: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # kv rank, q rank, rope, key and value length of a head
    ssm: tuple[int, int, int, int] = (0, 0, 0, 0)  # inner, state, heads, groups
    tied: bool = False
    kind: str = "q4_0"
    fitted: bool = False
    more: tuple[tuple[str, WriteValue], ...] = field(default=())


SHAPES = (
    Shape("llama-1b", "llama", 4, 2048, 32000, 32, 4, 64, 5632, fitted=True),
    Shape("llama-wide-vocab", "llama", 3, 2048, 128256, 32, 8, 64, 8192, tied=True, kind="q8_0"),
    Shape("llama-narrow-inner", "llama", 5, 1536, 49152, 24, 24, 64, 1024),
    Shape("qwen3-0.6b", "qwen3", 4, 1024, 151936, 16, 8, 128, 3072, tied=True, fitted=True),
    Shape("qwen3-1.7b", "qwen3", 5, 2048, 151936, 16, 8, 128, 6144, tied=True, kind="q4_k"),
    Shape("qwen3-4b-cut", "qwen3", 3, 2560, 151936, 32, 8, 128, 9728, kind="q8_0"),
    Shape("gemma3-1b", "gemma3", 12, 1152, 262144, 4, 1, 256, 6912, window=512, tied=True, fitted=True),
    Shape("gemma3-4b-cut", "gemma3", 8, 2560, 262144, 8, 4, 256, 10240, window=1024, tied=True, kind="q4_k"),
    Shape("gemma3-12b-cut", "gemma3", 7, 3840, 65536, 16, 8, 256, 15360, window=1024, tied=True),
    Shape("qwen3moe-small", "qwen3moe", 4, 1024, 65536, 16, 4, 64, 3072, 32, 4, 384, fitted=True),
    Shape("qwen3moe-30b-cut", "qwen3moe", 2, 2048, 151936, 32, 4, 128, 6144, 128, 8, 768),
    Shape("qwen3moe-many", "qwen3moe", 3, 1536, 65536, 24, 4, 64, 4096, 64, 16, 512, kind="q8_0"),
    Shape(
        "deepseek2-lite-cut",
        "deepseek2",
        4,
        2048,
        102400,
        16,
        inner=10944,
        experts=16,
        used=6,
        expert_inner=1408,
        shared_inner=2816,
        dense_layers=1,
        mla=(512, 1536, 64, 192, 128),
        fitted=True,
    ),
    Shape(
        "deepseek2-small",
        "deepseek2",
        5,
        1280,
        65536,
        20,
        inner=4096,
        experts=24,
        used=4,
        expert_inner=640,
        shared_inner=1280,
        dense_layers=2,
        mla=(256, 512, 32, 96, 64),
        kind="q8_0",
    ),
    Shape(
        "deepseek2-heads",
        "deepseek2",
        2,
        3072,
        65536,
        64,
        inner=8192,
        experts=8,
        used=2,
        expert_inner=1536,
        shared_inner=1536,
        dense_layers=1,
        mla=(512, 1536, 64, 192, 128),
    ),
    Shape("mamba2-370m", "mamba2", 6, 1024, 50288, ssm=(2048, 128, 32, 1), tied=True, fitted=True),
    Shape("mamba2-1.3b-cut", "mamba2", 8, 2048, 50288, ssm=(4096, 128, 64, 1), tied=True, kind="q8_0"),
    Shape("mamba2-groups", "mamba2", 4, 2560, 32768, ssm=(5120, 64, 80, 8)),
    Shape(
        "granitehybrid-1b-cut",
        "granitehybrid",
        8,
        1536,
        100352,
        12,
        4,
        128,
        4096,
        attention_layers=(3, 7),
        ssm=(3072, 128, 48, 1),
        tied=True,
        fitted=True,
    ),
    Shape(
        "granitehybrid-tiny-moe",
        "granitehybrid",
        6,
        1536,
        49152,
        12,
        4,
        128,
        512,
        64,
        6,
        512,
        1024,
        attention_layers=(5,),
        ssm=(3072, 128, 48, 1),
        tied=True,
        kind="q8_0",
    ),
    Shape(
        "granitehybrid-350m",
        "granitehybrid",
        10,
        768,
        100352,
        12,
        4,
        64,
        2048,
        attention_layers=(2, 5, 8),
        ssm=(1536, 128, 48, 1),
        tied=True,
    ),
)


def write_shape(shape: Shape, path: Path) -> Path:
    """The file of that shape, without data."""
    tensors = tuple(_tensors(shape))
    header = render_header(_metadata(shape), tensors)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + data_bytes(tensors))
    return path


def _metadata(shape: Shape) -> Iterator[tuple[str, WriteValue]]:
    arch = shape.architecture
    yield "general.architecture", arch
    yield "general.name", shape.name
    yield f"{arch}.block_count", shape.layers
    yield f"{arch}.context_length", 131072
    yield f"{arch}.embedding_length", shape.width
    yield f"{arch}.feed_forward_length", shape.inner
    yield f"{arch}.attention.layer_norm_rms_epsilon", 1e-5
    yield f"{arch}.vocab_size", shape.vocab
    yield from _attention(shape)
    if shape.window:
        yield f"{arch}.attention.sliding_window", shape.window
    if shape.experts:
        yield f"{arch}.expert_count", shape.experts
        yield f"{arch}.expert_used_count", shape.used
        yield f"{arch}.expert_feed_forward_length", shape.expert_inner
    if shape.shared_inner:
        yield f"{arch}.expert_shared_feed_forward_length", shape.shared_inner
    if shape.ssm[0]:
        for name, value in zip(("inner_size", "state_size", "time_step_rank", "group_count"), shape.ssm, strict=True):
            yield f"{arch}.ssm.{name}", value
        yield f"{arch}.ssm.conv_kernel", 4
    yield from shape.more
    yield from _tokenizer(shape.vocab)


def _attention(shape: Shape) -> Iterator[tuple[str, WriteValue]]:
    arch = shape.architecture
    if not shape.heads:
        return
    yield f"{arch}.attention.head_count", shape.heads
    if shape.mla[0]:
        rank, q_rank, rope, key, value = shape.mla
        yield f"{arch}.attention.head_count_kv", 1
        yield f"{arch}.attention.kv_lora_rank", rank
        yield f"{arch}.attention.q_lora_rank", q_rank
        yield f"{arch}.attention.key_length", rank + rope
        yield f"{arch}.attention.value_length", rank
        yield f"{arch}.attention.key_length_mla", key
        yield f"{arch}.attention.value_length_mla", value
        yield f"{arch}.rope.dimension_count", rope
        yield f"{arch}.leading_dense_block_count", shape.dense_layers
        yield f"{arch}.expert_shared_count", shape.shared_inner // shape.expert_inner
        return
    each = shape.kv_heads
    if shape.attention_layers:
        yield (
            f"{arch}.attention.head_count_kv",
            [each if layer in shape.attention_layers else 0 for layer in range(shape.layers)],
        )
        yield f"{arch}.residual_scale", 0.25
        yield f"{arch}.embedding_scale", 12.0
        yield f"{arch}.logit_scale", 6.0
        yield f"{arch}.rope.scaling.finetuned", False
    else:
        yield f"{arch}.attention.head_count_kv", each
    yield f"{arch}.attention.key_length", shape.head
    yield f"{arch}.attention.value_length", shape.head
    yield f"{arch}.rope.dimension_count", shape.head


def _tokenizer(vocab: int) -> Iterator[tuple[str, WriteValue]]:
    words = make_vocabulary(vocab)
    yield "tokenizer.ggml.model", "llama"
    yield "tokenizer.ggml.tokens", words.tokens
    yield "tokenizer.ggml.scores", words.scores
    yield "tokenizer.ggml.token_type", words.kinds
    yield "tokenizer.ggml.bos_token_id", BEGIN_ID
    yield "tokenizer.ggml.eos_token_id", END_ID
    yield "tokenizer.ggml.unknown_token_id", UNKNOWN_ID


def _tensors(shape: Shape) -> Iterator[NewTensor]:
    width, kind = shape.width, shape.kind
    yield NewTensor("token_embd.weight", (width, shape.vocab), kind)
    yield NewTensor("output_norm.weight", (width,), "f32")
    if not shape.tied:
        yield NewTensor("output.weight", (width, shape.vocab), kind)
    for layer in range(shape.layers):
        matrices, plain = dict(_layer_matrices(shape, layer)), dict(_layer_vectors(shape, layer))
        yield from (NewTensor(f"blk.{layer}.{name}", size, "f32") for name, size in plain.items())
        yield from (NewTensor(f"blk.{layer}.{name}.weight", size, kind) for name, size in matrices.items())


def _recurs(shape: Shape, layer: int) -> bool:
    return bool(shape.ssm[0]) and layer not in shape.attention_layers


def _layer_matrices(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = shape.width
    if _recurs(shape, layer):
        inner, state, heads, groups = shape.ssm
        yield "ssm_in", (width, 2 * inner + 2 * groups * state + heads)
        yield "ssm_out", (inner, width)
    elif shape.mla[0]:
        rank, q_rank, rope, key, value = shape.mla
        yield "attn_q_a", (width, q_rank)
        yield "attn_q_b", (q_rank, shape.heads * key)
        yield "attn_kv_a_mqa", (width, rank + rope)
        yield "attn_k_b", (key - rope, rank, shape.heads)
        yield "attn_v_b", (rank, value, shape.heads)
        yield "attn_output", (shape.heads * value, width)
    else:
        yield "attn_q", (width, shape.heads * shape.head)
        yield "attn_k", (width, shape.kv_heads * shape.head)
        yield "attn_v", (width, shape.kv_heads * shape.head)
        yield "attn_output", (shape.heads * shape.head, width)
    if shape.architecture == "mamba2":
        return
    if shape.experts and layer >= shape.dense_layers:
        yield "ffn_gate_exps", (width, shape.expert_inner, shape.experts)
        yield "ffn_up_exps", (width, shape.expert_inner, shape.experts)
        yield "ffn_down_exps", (shape.expert_inner, width, shape.experts)
        if shape.shared_inner:
            yield "ffn_gate_shexp", (width, shape.shared_inner)
            yield "ffn_up_shexp", (width, shape.shared_inner)
            yield "ffn_down_shexp", (shape.shared_inner, width)
        return
    yield "ffn_gate", (width, shape.inner)
    yield "ffn_up", (width, shape.inner)
    yield "ffn_down", (shape.inner, width)


def _layer_vectors(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = shape.width
    yield "attn_norm.weight", (width,)
    if _recurs(shape, layer):
        inner, state, heads, groups = shape.ssm
        mixed = inner + 2 * groups * state
        yield "ssm_conv1d.weight", (4, mixed)
        yield "ssm_conv1d.bias", (mixed,)
        yield "ssm_dt.bias", (heads,)
        yield "ssm_a", (1, heads)
        yield "ssm_d", (1, heads)
        yield "ssm_norm.weight", (inner // groups, groups)
    elif shape.mla[0]:
        yield "attn_q_a_norm.weight", (shape.mla[1],)
        yield "attn_kv_a_norm.weight", (shape.mla[0],)
    elif shape.architecture in ("qwen3", "qwen3moe", "qwen3vl", "gemma3"):
        yield "attn_q_norm.weight", (shape.head,)
        yield "attn_k_norm.weight", (shape.head,)
    if shape.architecture == "mamba2":
        return
    yield "ffn_norm.weight", (width,)
    if shape.architecture == "gemma3":
        yield "post_attention_norm.weight", (width,)
        yield "post_ffw_norm.weight", (width,)
    if shape.experts and layer >= shape.dense_layers:
        yield "ffn_gate_inp.weight", (width, shape.experts)
