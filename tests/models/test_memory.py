from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import MlaFacts, ModelFacts, SsmFacts
from velollm.knobs import KnobValue
from velollm.models.memory import estimate_compute_bytes, estimate_kv_bytes, estimate_total_bytes
from velollm.units import GIB


def model(**changes: object) -> ModelFacts:
    """Shape of Llama 3.1 8B, with changes."""
    layers = changes.get("layers", 32)
    assert isinstance(layers, int)
    shape: dict[str, object] = {
        "name": "llama3.1-8b",
        "architecture": "llama",
        "layers": layers,
        "embedding_length": 4096,
        "feed_forward_length": (14336,) * layers,
        "heads": (32,) * layers,
        "kv_heads": (8,) * layers,
        "key_length": 128,
        "value_length": 128,
        "vocab": 128256,
        "context_train": 131072,
        "recurrent_layers": (False,) * layers,
        "tensor_bytes": 4_900_000_000,
    }
    return ModelFacts.model_validate(shape | changes)


def test_kv_of_a_model_with_grouped_heads() -> None:
    # 2 × 32 layers × 8 heads × 128 values × 2 bytes = 128 KiB a token.
    assert estimate_kv_bytes(model(), 8192, 1, "f16", "f16") == GIB
    assert estimate_kv_bytes(model(), 8192, 4, "f16", "f16") == 4 * GIB


def test_kv_types_by_block_bytes() -> None:
    assert estimate_kv_bytes(model(), 8192, 1, "q8_0", "q8_0") == GIB // 2 * 34 // 32
    assert estimate_kv_bytes(model(), 8192, 1, "q8_0", "q4_0") == GIB // 4 * 34 // 32 + GIB // 4 * 18 // 32
    assert estimate_kv_bytes(model(), 8192, 1, "q9_0", "f16") is None


def test_cells_are_padded_for_each_slot() -> None:
    token = 128 * 1024
    assert estimate_kv_bytes(model(), 1, 3, "f16", "f16") == 3 * 256 * token
    assert estimate_kv_bytes(model(), 257, 3, "f16", "f16") == 3 * 512 * token


def test_sliding_layers_keep_a_window_and_a_batch() -> None:
    gemma = model(sliding_window=1024, sliding_layers=(True,) * 24 + (False,) * 8, architecture="gemma3")
    row = 2 * 8 * 128 * 2
    assert estimate_kv_bytes(gemma, 8192, 2, "f16", "f16") == 2 * row * (24 * 1536 + 8 * 8192)
    assert estimate_kv_bytes(gemma, 8192, 1, "f16", "f16", ubatch=100) == row * (24 * 1280 + 8 * 8192)
    assert estimate_kv_bytes(gemma, 1024, 1, "f16", "f16") == row * 32 * 1024


def test_sliding_layers_may_have_other_head_sizes() -> None:
    gemma = model(layers=2, sliding_window=256, sliding_layers=(True, False), key_length_swa=64, value_length_swa=32)
    assert estimate_kv_bytes(gemma, 2048, 1, "f16", "f16", ubatch=256) == 8 * 2 * (96 * 512 + 256 * 2048)


def test_mla_keeps_one_compressed_row_and_no_v() -> None:
    deepseek = model(kv_heads=(1,) * 32, mla=MlaFacts(kv_lora_rank=512, rope_dims=64), key_length=576, value_length=512)
    assert estimate_kv_bytes(deepseek, 1024, 1, "f16", "f32") == 32 * 576 * 2 * 1024


def test_shared_layers_keep_nothing() -> None:
    assert estimate_kv_bytes(model(kv_shared_layers=12), 8192, 1, "f16", "f16") == GIB * 20 // 32


def test_recurrent_layers_keep_a_state_for_each_slot_whatever_the_context() -> None:
    ssm = SsmFacts(conv_kernel=4, inner_size=4096, state_size=128, group_count=8)
    mamba = model(kv_heads=(0,) * 32, heads=(0,) * 32, recurrent_layers=(True,) * 32, ssm=ssm, architecture="mamba2")
    state = 32 * 4 * (3 * (4096 + 2 * 8 * 128) + 128 * 4096)
    assert estimate_kv_bytes(mamba, 2048, 1, "f16", "f16") == state
    assert estimate_kv_bytes(mamba, 65536, 4, "q8_0", "q8_0") == 4 * state


def test_hybrid_models_keep_both() -> None:
    ssm = SsmFacts(conv_kernel=3, inner_size=64, state_size=0, group_count=0)
    recurrent = (True, False)
    hybrid = model(layers=2, kv_heads=(0, 8), recurrent_layers=recurrent, ssm=ssm, architecture="lfm2")
    assert estimate_kv_bytes(hybrid, 256, 2, "f16", "f16") == 2 * (256 * 2 * 8 * 128 * 2 + 2 * 64 * 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": None, "kv_heads": None, "recurrent_layers": None},
        {"kv_heads": None},
        {"key_length": None},
        {"recurrent_layers": None},
        {"architecture": "deepseek32"},
        {"recurrent_layers": (True,) * 32},
        {"ssm": SsmFacts(conv_kernel=4)},
        {"recurrent_layers": (True,) * 32, "ssm": SsmFacts(conv_kernel=4)},
    ],
)
def test_an_unknown_shape_gives_no_number(changes: dict[str, object]) -> None:
    unknown = model().model_copy(update=changes)
    assert estimate_kv_bytes(unknown, 4096, 1, "f16", "f16") is None
    assert estimate_total_bytes(unknown, {"context_tokens": 4096}) is None


@pytest.mark.parametrize("name", ["embedding_length", "vocab", "heads", "feed_forward_length"])
def test_an_unknown_width_gives_no_compute_buffer(name: str) -> None:
    assert estimate_compute_bytes(model().model_copy(update={name: None}), 4096, 1) is None


def test_total_is_the_sum_of_its_parts() -> None:
    found = estimate_total_bytes(model(), {"context_tokens": 8192, "slots": 2})
    assert found is not None
    assert (found.weights_bytes, found.kv_bytes) == (4_900_000_000, 2 * GIB)
    assert found.compute_bytes == estimate_compute_bytes(model(), 8192, 2)
    assert found.total_bytes == found.weights_bytes + found.kv_bytes + found.compute_bytes
    assert found.basis == "arithmetic"


def test_absent_knobs_are_the_engines_defaults() -> None:
    spelled: dict[str, KnobValue] = {
        "context_tokens": 131072,
        "slots": 1,
        "kv_type_k": "f16",
        "kv_type_v": "f16",
        "ubatch": 512,
    }
    assert estimate_total_bytes(model(), {}) == estimate_total_bytes(model(), spelled)
    assert estimate_total_bytes(model(context_train=None), {}) is None


def test_the_file_stands_in_for_unknown_tensors() -> None:
    found = estimate_total_bytes(model(tensor_bytes=None, file_bytes=7), {"context_tokens": 256})
    assert found is not None
    assert found.weights_bytes == 7
    assert estimate_total_bytes(model(tensor_bytes=None), {"context_tokens": 256}) is None


def test_a_smaller_batch_caps_the_physical_one() -> None:
    small = estimate_total_bytes(model(), {"context_tokens": 4096, "batch": 128, "ubatch": 512})
    assert small == estimate_total_bytes(model(), {"context_tokens": 4096, "batch": 128, "ubatch": 128})


def test_without_flash_attention_the_scores_take_memory() -> None:
    with_it = estimate_compute_bytes(model(), 32768, 1)
    without = estimate_compute_bytes(model(), 32768, 1, flash_attention=False)
    assert with_it is not None
    assert without is not None
    # 32 heads × 32,768 cells × 512 tokens × 4 bytes = 2 GiB.
    assert with_it < GIB // 4
    assert 2 * GIB < without < 2 * GIB + GIB // 4


@given(
    context=st.integers(1, 200_000),
    more=st.integers(0, 100_000),
    slots=st.integers(1, 16),
    ubatch=st.sampled_from([16, 512, 2048]),
    window=st.one_of(st.none(), st.integers(1, 8192)),
)
def test_more_context_never_takes_less(context: int, more: int, slots: int, ubatch: int, window: int | None) -> None:
    shape = model(sliding_window=window, sliding_layers=(window is not None, False) * 16)
    knobs = {"slots": slots, "ubatch": ubatch, "batch": 2048}
    small = estimate_total_bytes(shape, {**knobs, "context_tokens": context})
    large = estimate_total_bytes(shape, {**knobs, "context_tokens": context + more})
    assert small is not None
    assert large is not None
    assert small.total_bytes <= large.total_bytes
