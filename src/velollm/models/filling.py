"""The values of a made model's tensors, streamed in pieces, the same for the same seed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from velollm.errors import VeloError
from velollm.models.blocks import SIGN_TYPES, Pool, can_fill, encode_signs, encode_units
from velollm.models.succession import LAYERS_SHARE, Succession, output_scale, predecessors, read_by_heads, sign_rows
from velollm.models.types import TENSOR_TYPES, TYPE_IDS
from velollm.models.writer import NewTensor
from velollm.units import MIB

# Spread of the logits: the text varies, and no token stands above all others.
_LOGIT_RMS = 2.0
_PIECE_BYTES = MIB
# Values of signs at once: they take a byte each before they are packed.
_SIGNS = 1 << 21
# What writes into the residual; the small ones of predictable models.
_WRITERS = ("attn_output.weight", "ffn_down", "ssm_out.weight", "time_mix_output.weight", "channel_mix_value.weight")
_POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight", "post_norm.weight")
# Of MTP layers: embeddings and output matrix of their own, and what joins a token (first) and the state before it.
HEADS_EMBEDDING, _HEADS_OUTPUT = "nextn.embed_tokens.weight", "nextn.shared_head_head.weight"
HEADS_JOIN = "nextn.eh_proj.weight"
_CHOSEN = ("token_embd.weight", "output.weight", HEADS_EMBEDDING, _HEADS_OUTPUT, HEADS_JOIN)
_EMBEDDING, _OUTPUT, _OTHER = range(3)


@dataclass(frozen=True)
class Gains:
    """What the engine does beside the matrices: it multiplies embeddings and logits by these."""

    embedding: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Values:
    """How a model's tensors are filled: seed, gains, how many first tokens are seldom written, and its succession."""

    seed: int
    layers: int
    vocab: int
    muted: int
    gains: Gains = Gains()
    succession: Succession | None = None
    rope_factors: tuple[float, ...] = ()


class Filling:
    """Makes the data of each tensor, scaled so that activations stay near 1."""

    def __init__(self, values: Values, tensors: Sequence[NewTensor]) -> None:
        self._values = values
        self._names = frozenset(tensor.name for tensor in tensors)
        self._pools: dict[tuple[str, int], Pool] = {}
        self._last: tuple[tuple[str, int, float], memoryview] | None = None
        for tensor in tensors:
            self._check(tensor)

    def _check(self, tensor: NewTensor) -> None:
        if not can_fill(tensor.type_name) and not tensor.type_name.startswith("i"):
            raise VeloError(
                f"{tensor.name} has the number format {tensor.type_name}, which cannot be made",
                "choose another quantization with --quant",
            )
        if self._chosen(tensor.name) and tensor.type_name not in SIGN_TYPES:
            raise VeloError(
                f"{tensor.name} has the number format {tensor.type_name}, in which text cannot be chosen",
                "choose another quantization with --quant, such as q4_K_M",
            )

    def pieces(self, index: int, tensor: NewTensor) -> Iterator[bytes | memoryview]:
        """The data of the tensor with that index, about a MiB at a time."""
        if self._chosen(tensor.name):
            return _unit_pieces(tensor) if tensor.name.endswith(HEADS_JOIN) else self._sign_pieces(tensor)
        constant = self._constant(tensor)
        if constant is not None:
            return iter([constant])
        return self._random(index, tensor)

    def _chosen(self, name: str) -> bool:
        return self._values.succession is not None and re.sub(r"^blk\.\d+\.", "", name) in _CHOSEN

    def _sign_pieces(self, tensor: NewTensor) -> Iterator[bytes]:
        """Embedding rows, or output rows with the embedding of the token before; muted tokens follow none."""
        import numpy as np

        values, wanted = self._values, self._values.succession
        assert wanted is not None
        width, vocab = tensor.shape
        tokens = np.arange(vocab, dtype=np.int64)
        amplitude = 1 / values.gains.embedding
        if tensor.name.endswith(("output.weight", _HEADS_OUTPUT)):
            tokens = predecessors(wanted, vocab, values.muted)
            amplitude = output_scale(wanted.predictability, vocab, values.muted, width) / values.gains.logits
        elif tensor.name.endswith(HEADS_EMBEDDING):
            tokens = read_by_heads(wanted, vocab, values.muted)
        step = max(1, _SIGNS // width)
        for start in range(0, vocab, step):
            part = tokens[start : start + step]
            # Each model has an embedding of its own; its width makes that of a draft another one.
            rows = encode_signs(sign_rows(np.maximum(part, 0), width, values.seed), tensor.type_name, amplitude)
            yield np.where((part < 0)[:, None], np.uint8(0), rows).tobytes()

    def _constant(self, tensor: NewTensor) -> bytes | None:
        """Values that are not drawn: norms, biases, the parameters of recurrent mixers, whole numbers."""
        import numpy as np

        if tensor.type_name in ("i8", "i16", "i32", "i64"):
            return bytes(tensor.size_bytes)
        if tensor.type_name != "f32":
            return None
        name, count = tensor.name, tensor.elements
        value: Any
        if name == "rope_freqs.weight" and len(self._values.rope_factors) == count:
            value = np.asarray(self._values.rope_factors)
        elif name.endswith("ssm_a"):
            # −1 to −16, and steps of about 0.001 to 0.1 s: what Mamba-2 starts from (Dao and Gu 2024).
            value = -np.linspace(1.0, 16.0, count)
        elif name.endswith("ssm_dt.bias"):
            value = np.linspace(-6.9, -2.25, count)
        elif name.endswith(_POST_NORMS) and self._values.succession is not None:
            value = self._share()
        elif name == "output_norm.weight" and self._is_output("token_embd.weight"):
            # Signs in turn, or each token's own embedding in the residual would name the token itself as the next.
            value = 1.0 - 2.0 * (np.arange(count) % 2)
        elif "norm" in name or "rope" in name or name.endswith(("ssm_d", "scale.weight", ".scale")):
            value = 1.0
        elif name.endswith(("bias", "sinks.weight")):
            value = 0.0
        else:
            return None
        return np.full(count, value, dtype="<f4").tobytes()

    def _random(self, index: int, tensor: NewTensor) -> Iterator[memoryview]:
        kind = TENSOR_TYPES[TYPE_IDS[tensor.type_name]]
        role = {"token_embd.weight": _EMBEDDING, "output.weight": _OUTPUT}.get(tensor.name, _OTHER)
        data, blocks = self._scaled(tensor.type_name, role, self._rms(tensor))
        at = _start(self._values.seed, index, blocks) * kind.block_bytes
        left = tensor.size_bytes
        # Special and byte tokens get a logit of 0, which is seldom drawn: bytes alone are often no valid text.
        if self._is_output(tensor.name):
            muted = min(left, self._values.muted * kind.bytes_of(tensor.shape[0]))
            yield memoryview(bytes(muted))
            left -= muted
        while left > 0:
            piece = data[at : at + min(left, _PIECE_BYTES)]
            left -= len(piece)
            at = (at + len(piece)) % len(data)
            yield piece

    def _is_output(self, name: str) -> bool:
        # A draft without any of the two uses those of its model.
        tied = "token_embd.weight" in self._names and "output.weight" not in self._names
        return name == "output.weight" or (name == "token_embd.weight" and tied)

    def _scaled(self, type_name: str, role: int, rms: float) -> tuple[memoryview, int]:
        """The bytes of a pool at that scale; kept until another is asked for, as many tensors in a row share one."""
        pool = self._pools.get((type_name, role))
        if pool is None:
            pool = self._pools[type_name, role] = Pool(type_name, (self._values.seed, role))
        key = (type_name, role, rms)
        if self._last is None or self._last[0] != key:
            self._last = key, pool.scaled(rms)
        return self._last[1], pool.blocks

    def _rms(self, tensor: NewTensor) -> float:
        """Root mean square of a tensor's values: 1/√(row length) keeps sums near 1."""
        by_row = 1 / math.sqrt(tensor.shape[0])
        if self._is_output(tensor.name):
            # Where it is the embedding too, the layers' own sums outweigh the small embeddings.
            return _LOGIT_RMS * by_row / self._values.gains.logits
        if tensor.name == "token_embd.weight":
            return 1 / self._values.gains.embedding
        if self._values.succession is not None and any(writer in tensor.name for writer in _WRITERS):
            return by_row * self._share()
        return by_row

    def _share(self) -> float:
        """How much one writer may move the residual, of two in each layer whose sums are independent."""
        return LAYERS_SHARE / math.sqrt(2 * max(1, self._values.layers))


def _unit_pieces(tensor: NewTensor) -> Iterator[bytes]:
    """Rows that take the first half as it is and nothing of the second: the state before a token names nothing new."""
    import numpy as np

    length, rows = tensor.shape
    step = max(1, _SIGNS // length)
    for start in range(0, rows, step):
        ones = np.zeros((min(step, rows - start), length), dtype=np.uint8)
        at = np.arange(len(ones))
        ones[at, start + at] = 1
        yield encode_units(ones, tensor.type_name).tobytes()


def _start(seed: int, index: int, blocks: int) -> int:
    """Where a tensor begins its walk around the pool."""
    import numpy as np

    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] % np.uint64(blocks))
