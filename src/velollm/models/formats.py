"""Number formats of whole models: which format each tensor gets, and bits a weight in those of other engines.

The rules are data, `configs/formats.yaml`; how they apply follows ``llama_tensor_get_type_impl`` and
``tensor_type_fallback`` of llama.cpp b10488 (src/llama-quant.cpp).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from velollm.facts import Frozen
from velollm.models.types import tensor_type
from velollm.models.yamlfile import load_rows

_LAYER = re.compile(r"^blk\.(\d+)\.")
# Not quantized (``tensor_allows_quantization``): those that the converter keeps in float32, and in float16.
_KEPT = re.compile(r"ffn_gate_inp|ssm_conv1d|shortconv\.conv|_norm\.")
_KEPT_HALF = re.compile(r"per_layer_model_proj|altup|laurel")
_FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
# Architectures whose files of this many experts keep attention in more bits.
_EIGHT_EXPERTS = 8
_GROUPED_HEADS = 4
# ``LLM_TYPE_70B``: 80 layers whose heads share K and V by eights (src/models/llama.cpp, qwen2.cpp).
_LAYERS_OF_70B, _HEADS_OF_70B = 80, 8


class Format(Frozen):
    """One format of a whole model.

    ``family`` gguf: ``base`` is the format of most matrices; ``output`` of the output matrix (and of embeddings that
    are tied to it); the other fields, of the tensors they name (``more_bits``: of ``attn_v`` and ``ffn_down`` in
    about half of the layers, ``early``: of ``ffn_down`` in the first eighth, ``grouped_attn_v``: of ``attn_v`` where
    four or more heads share one). Other families: ``bits_per_weight`` with all scales, of every matrix but the
    embedding and the output, which stay in float16.
    """

    name: str
    family: Literal["gguf", "gptq", "awq", "fp8", "exl", "bitsandbytes", "fp4", "mlx", "int8"]
    aliases: tuple[str, ...] = ()
    base: str | None = None
    output: str | None = None
    embedding: str | None = None
    more_bits: str | None = None
    early: str | None = None
    attn_v: str | None = None
    grouped_attn_v: str | None = None
    attn_output: str | None = None
    attn_qkv: str | None = None
    ffn_down: str | None = None
    experts: str | None = None
    bits_per_weight: float | None = None
    engines: tuple[str, ...] = ()
    basis: str
    changes_output: bool = True


@lru_cache(maxsize=1)
def load_formats() -> tuple[Format, ...]:
    """All formats, those with most bits first."""
    return tuple(Format.model_validate(row) for row in load_rows("formats", "formats"))


def find_format(name: str) -> Format | None:
    """The format of that name or alias, without regard to case (``Q4_K_M``, ``fp16``); None where there is none."""
    wanted = name.strip().lower()
    for found in load_formats():
        if wanted in (found.name.lower(), *(alias.lower() for alias in found.aliases)):
            return found
    return None


def tensor_format(
    form: Format, name: str, shape: tuple[int, ...], *, layers: int, grouped_heads: int, experts: int, tied: bool
) -> str:
    """Format of one tensor of a GGUF model in ``form``; ``grouped_heads``: heads that share one K and V."""
    if len(shape) == 1 or not name.endswith(".weight") or _KEPT.search(name):
        return "f32"
    if _KEPT_HALF.search(name) or form.base is None:
        return "f16"
    block = tensor_type(form.base)
    if block is not None and block.block == 1 and form.experts is None:
        return form.base
    return _fitting(_chosen(form, name, layers, grouped_heads, experts, tied), shape[0])


def _chosen(form: Format, name: str, layers: int, grouped_heads: int, experts: int, tied: bool) -> str:
    base = form.base or "f16"
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return form.output or base
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return form.embedding or base
    if form.experts is not None:
        return form.experts if "_exps." in name else base
    number = _LAYER.match(name)
    layer = int(number.group(1)) if number else 0
    if "attn_v" in name:
        return _chosen_value(form, base, layer, layers, grouped_heads, experts)
    if experts == _EIGHT_EXPERTS and "attn_k.weight" in name:
        return "q8_0"
    if "attn_qkv" in name:
        return form.attn_qkv or base
    if "ffn_down" in name:
        if form.more_bits is not None and takes_more_bits(layer, layers):
            return form.more_bits
        if form.early is not None and layer < layers // 8:
            return form.early
        return form.ffn_down or base
    if "attn_output" in name:
        if experts == _EIGHT_EXPERTS and base in ("q2_k", "q3_k", "q4_k", "iq4_xs", "iq4_nl"):
            return "q5_k"
        return form.attn_output or base
    return base


def _chosen_value(form: Format, base: str, layer: int, layers: int, grouped_heads: int, experts: int) -> str:
    if experts == _EIGHT_EXPERTS:
        return "q8_0"
    if form.more_bits is not None and takes_more_bits(layer, layers):
        return form.more_bits
    if base in ("q3_k", "q4_k") and layers == _LAYERS_OF_70B and grouped_heads == _HEADS_OF_70B:
        return "q5_k"
    if form.grouped_attn_v is not None and grouped_heads >= _GROUPED_HEADS:
        return form.grouped_attn_v
    return form.attn_v or base


def takes_more_bits(layer: int, layers: int) -> bool:
    """Is this one of the layers whose V and down matrices get more bits (``use_more_bits``)?"""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(kind: str, row_length: int) -> str:
    """The format, or the one that takes its place where a row is no whole number of blocks."""
    for name in (kind, _FALLBACKS.get(kind, "f16")):
        known = tensor_type(name)
        if known is not None and row_length % known.block == 0:
            return name
    return "f16"
