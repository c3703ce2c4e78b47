"""Random blocks and sign blocks of every format, against the dequantization of the gguf package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from velollm.models.blocks import LAYOUTS, SIGN_TYPES, Pool, encode_signs, encode_units
from velollm.models.types import TYPE_IDS


def values(data: Any, type_name: str) -> Any:
    raw = np.frombuffer(data, dtype=np.uint8)
    if type_name in ("f32", "f16"):
        return raw.view("<f4" if type_name == "f32" else "<f2").astype("f8")
    blocks = raw.reshape(1, -1)
    return dequantize(blocks, GGMLQuantizationType(TYPE_IDS[type_name])).astype("f8").ravel()


@pytest.mark.parametrize("type_name", [*LAYOUTS, "f32", "f16", "bf16"])
@pytest.mark.parametrize("rms", [1.0, 0.02])
def test_random_blocks_have_the_wanted_spread(type_name: str, rms: float) -> None:
    found = values(Pool(type_name, (1,)).scaled(rms), type_name)
    assert np.isfinite(found).all()
    assert np.sqrt((found**2).mean()) == pytest.approx(rms, rel=0.03)
    assert abs(found.mean()) < 0.01 * rms


def test_mxfp4_has_the_nearest_power_of_two() -> None:
    found = values(Pool("mxfp4", (1,)).scaled(0.05), "mxfp4")
    assert np.isfinite(found).all()
    assert 0.05 / 2**0.5 < np.sqrt((found**2).mean()) < 0.05 * 2**0.5


@pytest.mark.parametrize("type_name", ["q4_0", "q6_k", "f16"])
def test_pools_follow_their_seed(type_name: str) -> None:
    first = bytes(Pool(type_name, (1,)).scaled(1.0))
    assert bytes(Pool(type_name, (1,)).scaled(1.0)) == first
    assert bytes(Pool(type_name, (2,)).scaled(1.0)) != first


def test_a_pool_has_a_prime_number_of_blocks() -> None:
    for type_name in LAYOUTS:
        blocks = Pool(type_name, (1,)).blocks
        assert all(blocks % factor for factor in range(2, int(blocks**0.5) + 1))


@given(st.sampled_from(SIGN_TYPES), st.integers(0, 2**32), st.floats(1e-3, 10), st.integers(1, 3))
def test_signs_are_exact_in_every_format(type_name: str, seed: int, amplitude: float, rows: int) -> None:
    signs = np.random.default_rng(seed).integers(0, 2, (rows, 512), dtype=np.uint8)
    encoded = encode_signs(signs, type_name, amplitude)
    assert encoded.shape[0] == rows
    rounding = 2**-7 if type_name == "bf16" else 2**-10
    expected = (signs.astype("f8").ravel() * 2 - 1) * amplitude
    assert values(encoded.tobytes(), type_name) == pytest.approx(expected, rel=rounding)


@given(st.sampled_from(SIGN_TYPES), st.integers(0, 2**32), st.integers(1, 3))
def test_ones_are_exact_in_every_format(type_name: str, seed: int, rows: int) -> None:
    ones = np.random.default_rng(seed).integers(0, 2, (rows, 512), dtype=np.uint8)
    assert (values(encode_units(ones, type_name).tobytes(), type_name) == ones.ravel()).all()
