"""Random blocks of every number format, and blocks that hold signs or ones, written directly.

A pool of random blocks is drawn once per format; a tensor is a walk around its pool with the scales set so that its
values have the wanted root mean square. Layouts of blocks: ggml/src/ggml-common.h of llama.cpp b10488.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velollm.models.types import TENSOR_TYPES, TYPE_IDS
from velollm.units import MIB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

_POOL_BYTES = 2 * MIB
_FLOATS = ("f32", "f16", "bf16", "f64")


@dataclass(frozen=True)
class Layout:
    """Where a block keeps its float16 scale, and what its values are when all other bytes are random.

    ``rms``: root mean square of its values at scale 1. ``minimum``: place of a second float16, and its ratio to the
    scale that makes the mean 0; where there is none, scales of both signs do. ``fixed``: (start, end, byte) of bytes
    that are not random.
    """

    scale_at: int
    rms: float
    minimum: tuple[int, float] | None = None
    fixed: tuple[tuple[int, int, int], ...] = ()


# Sub-block scales and minima of 1 in all places (get_scale_min_k4 in ggml-quants.c).
_ONES_K4 = ((4, 12, 0x01), (12, 16, 0x11))
# Root mean squares: of evenly drawn whole numbers where they follow from the layout, else drawn through the
# dequantization of the gguf package; tests/models/test_blocks.py holds all against it.
LAYOUTS: dict[str, Layout] = {
    "q4_0": Layout(0, 4.637),
    "q4_1": Layout(0, 4.610, (2, -7.5)),
    "q5_0": Layout(0, 9.247),
    "q5_1": Layout(0, 9.233, (2, -15.5)),
    "q8_0": Layout(0, 73.90),
    "q2_k": Layout(80, 1.118, (82, 1.5), ((0, 16, 0x11),)),
    "q3_k": Layout(108, 43.34),
    "q4_k": Layout(0, 4.610, (2, 7.5), _ONES_K4),
    "q5_k": Layout(0, 9.233, (2, 15.5), _ONES_K4),
    "q6_k": Layout(208, 18.48, None, ((192, 208, 0x01),)),
    "iq4_nl": Layout(0, 67.40),
    "iq4_xs": Layout(0, 1244.0),
    "iq2_xxs": Layout(0, 53.2),
    "iq2_xs": Layout(0, 55.8),
    "iq2_s": Layout(0, 56.5),
    "iq3_xxs": Layout(0, 142.5),
    "iq3_s": Layout(0, 140.2),
    "iq1_s": Layout(0, 7.2),
    "tq1_0": Layout(52, 0.816),
    "tq2_0": Layout(64, 1.225),
}
# E8M0 exponents: a power of two is all the scale that a block of MXFP4 has.
_MXFP4_RMS = 5.852


def can_fill(type_name: str) -> bool:
    """Can tensors of that format be made?"""
    return type_name in LAYOUTS or type_name in _FLOATS or type_name == "mxfp4"


class Pool:
    """Random blocks of one format; their number is prime, so that rows of a tensor never fall together."""

    def __init__(self, type_name: str, seed: tuple[int, ...]) -> None:
        import numpy as np

        kind = TENSOR_TYPES[TYPE_IDS[type_name]]
        self._type = type_name
        self._block_bytes = kind.block_bytes
        self.blocks = _prime_below(_POOL_BYTES // max(4, kind.block_bytes))
        source = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*seed, TYPE_IDS[type_name]])))
        self._raw: Any
        if type_name in _FLOATS:
            self._raw = source.uniform(-(3**0.5), 3**0.5, self.blocks).astype("<f4")
            return
        self._raw = source.integers(0, 256, (self.blocks, kind.block_bytes), dtype=np.uint8)
        self._signs: Bytes = source.integers(0, 2, self.blocks, dtype=np.uint8) * np.uint8(128)
        for start, end, byte in LAYOUTS[type_name].fixed if type_name in LAYOUTS else ():
            self._raw[:, start:end] = byte

    def scaled(self, rms: float) -> memoryview:
        """The pool's bytes with values of that root mean square."""
        if self._type in _FLOATS:
            return memoryview(_encode_floats(self._raw * rms, self._type))
        if self._type == "mxfp4":
            self._raw[:, 0] = _e8m0(rms / _MXFP4_RMS)
        else:
            _set_scale(self._raw, LAYOUTS[self._type], rms, self._signs)
        return memoryview(self._raw.tobytes())


def _set_scale(raw: Bytes, layout: Layout, rms: float, signs: Bytes) -> None:
    import numpy as np

    scale = np.float16(rms / layout.rms)
    raw[:, layout.scale_at : layout.scale_at + 2] = np.frombuffer(scale.astype("<f2").tobytes(), dtype=np.uint8)
    if layout.minimum is None:
        raw[:, layout.scale_at + 1] |= signs
    else:
        at, ratio = layout.minimum
        minimum = np.float16(float(scale) * ratio)
        raw[:, at : at + 2] = np.frombuffer(minimum.astype("<f2").tobytes(), dtype=np.uint8)


def _e8m0(scale: float) -> int:
    """The exponent byte of the nearest power of two: 2^(byte − 128) times whole numbers (ggml_e8m0_to_fp32_half)."""
    import math

    return min(254, max(2, round(math.log2(scale)) + 128))


def _encode_floats(values: Any, type_name: str) -> bytes:
    encoded: bytes
    if type_name == "bf16":
        # The upper half of a float32 (rounded towards zero).
        encoded = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return encoded
    encoded = values.astype({"f32": "<f4", "f16": "<f2", "f64": "<f8"}[type_name]).tobytes()
    return encoded


def _prime_below(number: int) -> int:
    while any(number % factor == 0 for factor in range(2, int(number**0.5) + 1)):
        number -= 1
    return number


SIGN_TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
# The quant that stands for 0, in formats without a minimum.
_ZERO = {"q4_0": 8, "q5_0": 16, "q8_0": 0, "q6_k": 32}


def encode_signs(signs: npt.NDArray[np.uint8], type_name: str, amplitude: float) -> Bytes:
    """Rows of values ±``amplitude`` in that format; ``signs`` has a row of 0 (minus) and 1 (plus) for each.

    Every format holds them exactly but for the rounding of its scale, so that matrices of different formats agree.
    """
    import numpy as np

    return _encode_steps(signs.astype(np.int8) * np.int8(2) - np.int8(1), type_name, amplitude, lowest=-1)


def encode_units(ones: npt.NDArray[np.uint8], type_name: str) -> Bytes:
    """Rows of 0 and 1 in that format, exactly."""
    import numpy as np

    return _encode_steps(ones.astype(np.int8), type_name, 1.0, lowest=0)


def _encode_steps(steps: npt.NDArray[np.int8], type_name: str, scale: float, *, lowest: int) -> Bytes:
    """Rows of small whole numbers times ``scale``, none of them below ``lowest`` (−1 or 0)."""
    import numpy as np

    rows = steps.shape[0]
    if type_name in _FLOATS:
        return np.frombuffer(_encode_floats(steps * np.float32(scale), type_name), dtype=np.uint8).reshape(rows, -1)
    kind = TENSOR_TYPES[TYPE_IDS[type_name]]
    minimum = LAYOUTS[type_name].minimum
    zero = -lowest if minimum is not None else _ZERO[type_name]
    quants = (steps.reshape(-1, kind.block) + np.int8(zero)).view(np.uint8)  # in q8_0 255 is −1
    blocks = np.zeros((quants.shape[0], kind.block_bytes), dtype=np.uint8)
    _QUANT_WRITERS[type_name](blocks, quants)
    place = LAYOUTS[type_name].scale_at
    blocks[:, place : place + 2] = _half(scale)
    if minimum is not None:
        # Quants begin at 0, so the lowest value is the minimum, in the sign that the format gives it.
        blocks[:, minimum[0] : minimum[0] + 2] = _half(scale * lowest * (-1 if minimum[1] > 0 else 1))
        for start, end, byte in LAYOUTS[type_name].fixed:
            blocks[:, start:end] = byte
    return blocks.reshape(rows, -1)


def _half(value: float) -> Bytes:
    import numpy as np

    return np.frombuffer(np.float16(value).astype("<f2").tobytes(), dtype=np.uint8)


def _nibbles(low: Bytes, high: Bytes) -> Bytes:
    packed: Bytes = low | (high * 16)
    return packed


def _quants_4(blocks: Bytes, quants: Bytes) -> None:
    """Q4_0 and Q4_1, whose quants end the block."""
    blocks[:, -16:] = _nibbles(quants[:, :16], quants[:, 16:])


def _quants_5(blocks: Bytes, quants: Bytes) -> None:
    """Q5_0 and Q5_1: the fifth bits stand before the nibbles."""
    import numpy as np

    blocks[:, -20:-16] = np.packbits(quants >> 4, axis=1, bitorder="little")
    _quants_4(blocks, quants & np.uint8(15))


def _quants_q8_0(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 2:] = quants


def _quants_k(blocks: Bytes, quants: Bytes, quants_at: int) -> None:
    """Q4_K and Q5_K: 32 bytes hold 64 values, the first half in the low nibbles."""
    parts = quants.reshape(-1, 4, 2, 32)
    blocks[:, quants_at:] = _nibbles(parts[:, :, 0], parts[:, :, 1]).reshape(-1, 128)


def _quants_q4_k(blocks: Bytes, quants: Bytes) -> None:
    _quants_k(blocks, quants, 16)


def _quants_q5_k(blocks: Bytes, quants: Bytes) -> None:
    _quants_k(blocks, quants, 48)


def _quants_q6_k(blocks: Bytes, quants: Bytes) -> None:
    """Two halves of 128 values; four runs of 32 share 64 bytes of low nibbles and 32 of upper bit pairs."""
    import numpy as np

    parts = quants.reshape(-1, 2, 4, 32)
    low, high = parts % 16, parts // 16
    nibbles = np.concatenate([_nibbles(low[:, :, 0], low[:, :, 2]), _nibbles(low[:, :, 1], low[:, :, 3])], axis=2)
    blocks[:, :128] = nibbles.reshape(-1, 128)
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    blocks[:, 128:192] = pairs.reshape(-1, 64)
    blocks[:, 192:208] = 1


_QUANT_WRITERS = {
    "q4_0": _quants_4,
    "q4_1": _quants_4,
    "q5_0": _quants_5,
    "q5_1": _quants_5,
    "q8_0": _quants_q8_0,
    "q4_k": _quants_q4_k,
    "q5_k": _quants_q5_k,
    "q6_k": _quants_q6_k,
}
