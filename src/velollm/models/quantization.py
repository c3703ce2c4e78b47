"""Which tensor gets which number format: the mixtures behind names such as ``q4_K_M``.

Source: ``tensor_allows_quantization``, ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in
src/llama-quant.cpp of llama.cpp b10488, without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from velollm.errors import VeloError
from velollm.models.architectures.base import Part
from velollm.models.types import FILE_TYPES, TENSOR_TYPES, TYPE_IDS
from velollm.models.writer import NewTensor

# Name of the file type: the format of most matrices.
_MAIN = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q4_0": "q4_0",
    "Q4_1": "q4_1",
    "Q5_0": "q5_0",
    "Q5_1": "q5_1",
    "Q8_0": "q8_0",
    "Q4_K_S": "q4_k",
    "Q4_K_M": "q4_k",
    "Q5_K_S": "q5_k",
    "Q5_K_M": "q5_k",
    "Q6_K": "q6_k",
    "MXFP4_MOE": "mxfp4",
}
_NUMBERS = {name: number for number, name in FILE_TYPES.items()}
# As llama-quantize reads them (tools/quantize/quantize.cpp).
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
_FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
# Never quantized: norms, routers, convolutions (and whatever has one dimension or no "weight" in its name).
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d")
_ATTENTION_V = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_MANY_EXPERTS = 8


@dataclass(frozen=True)
class Quantization:
    """A mixture: its name, the format of most matrices, and its number in ``general.file_type``."""

    name: str
    main: str
    file_type: int
    pure: bool = False


def quantization_names() -> tuple[str, ...]:
    """The mixtures that can be made, as their names are usually written."""
    return tuple(_MAIN)


def is_quantization(name: str) -> bool:
    """Is that the name of a mixture that can be made?"""
    return _ALIASES.get(name.upper(), name.upper()) in _MAIN


def find_quantization(name: str, *, pure: bool = False) -> Quantization:
    """The mixture of that name, in any case; ``pure`` gives every matrix the same format.

    Raises:
        VeloError: models cannot be made in it.
    """
    key = _ALIASES.get(name.upper(), name.upper())
    if key not in _MAIN:
        raise VeloError(f"models cannot be made in '{name}'", f"these can: {', '.join(quantization_names())}")
    return Quantization(key, _MAIN[key], _NUMBERS[key], pure)


def choose_types(
    parts: Iterable[Part], quantization: Quantization, *, layers: int, experts: int = 0, grouped_heads: bool = False
) -> tuple[NewTensor, ...]:
    """Every tensor with its format; they come in the order of their layers.

    ``grouped_heads``: there are fewer KV heads than heads.
    """
    found = list(parts)
    names = [name for name, _ in found]
    chooser = _Chooser(
        quantization,
        layers=layers,
        experts=experts,
        tied="output.weight" not in names,
        values=sum(name.endswith(_ATTENTION_V) for name in names),
        large=layers == 80 and grouped_heads,
    )
    return tuple(NewTensor(name, shape, chooser.type_of(name, shape)) for name, shape in found)


def in_layer_order(parts: Iterable[Part]) -> list[Part]:
    """Tensors in the order in which `choose_types` has to see them."""
    return sorted(parts, key=lambda part: _layer(part[0]))


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """May a tensor have another format than F32 in a quantized file?"""
    return len(shape) > 1 and name.endswith("weight") and not any(kept in name for kept in _KEPT)


@dataclass
class _Chooser:
    """Goes through the tensors in the order of their layers, as the engine's quantizer does, and counts."""

    quantization: Quantization
    layers: int
    experts: int
    tied: bool
    values: int
    large: bool
    _value: int = -1

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        if not is_quantized(name, shape):
            return "f32"
        main = self.quantization.main
        chosen = main
        if not self.quantization.pure and TENSOR_TYPES[TYPE_IDS[main]].block > 1:
            chosen = self._mixed(name, shape)
        return _fitting(chosen, shape[0])

    def _mixed(self, name: str, shape: tuple[int, ...]) -> str:
        main, mixture = self.quantization.main, self.quantization.name
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return self._output(shape[0])
        if mixture == "MXFP4_MOE":
            return main if len(shape) > 2 and shape[2] > 1 else "q8_0"
        if name.endswith(_ATTENTION_V):
            return self._attention_v()
        if "attn_k.weight" in name and self.experts == _MANY_EXPERTS:
            return "q8_0"
        if "ffn_down" in name:
            return self._ffn_down(_layer(name))
        if "attn_output.weight" in name and self.experts == _MANY_EXPERTS and mixture.startswith("Q4_K"):
            return "q5_k"
        return main

    def _output(self, row: int) -> str:
        main = self.quantization.main
        if main in ("mxfp4", "q8_0") or row % TENSOR_TYPES[TYPE_IDS[main]].block:
            return "q8_0"
        return "q6_k"

    def _attention_v(self) -> str:
        self._value += 1
        chosen = self.quantization.main
        if self.quantization.name in ("Q4_K_M", "Q5_K_M") and _more_bits(self._value, self.values):
            chosen = "q6_k"
        elif self.quantization.name == "Q4_K_S" and self._value < 4:
            chosen = "q5_k"
        if self.large and chosen == "q4_k":
            chosen = "q5_k"
        return "q8_0" if self.experts == _MANY_EXPERTS else chosen

    def _ffn_down(self, layer: int) -> str:
        if self.quantization.name in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, self.layers):
            return "q6_k"
        if self.quantization.name == "Q4_K_S" and layer < self.layers // 8:
            return "q5_k"
        return self.quantization.main


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _fitting(type_name: str, row: int) -> str:
    """That format, or the one that takes its place for rows that its blocks do not divide."""
    if row % TENSOR_TYPES[TYPE_IDS[type_name]].block == 0:
        return type_name
    other = _FALLBACKS.get(type_name, "f16")
    return other if row % TENSOR_TYPES[TYPE_IDS[other]].block == 0 else "f16"
