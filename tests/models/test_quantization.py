from __future__ import annotations

from collections import Counter

import pytest

from velollm.errors import VeloError
from velollm.models.families import get_family
from velollm.models.quantization import find_quantization, quantization_names
from velollm.models.synthetic import Recipe, draw_blueprint


def types(name: str, quant: str) -> dict[str, str]:
    """Format of each tensor of a family."""
    blueprint = draw_blueprint(get_family(name).shape, Recipe(quant))
    return {tensor.name: tensor.type_name for tensor in blueprint.tensors}


def layers_with(found: dict[str, str], part: str, kind: str) -> list[int]:
    return [int(name.split(".")[1]) for name, chosen in found.items() if part in name and chosen == kind]


def test_names_and_aliases() -> None:
    assert find_quantization("Q4_k_m") == find_quantization("q4_K")
    assert find_quantization("mxfp4").name == "MXFP4_MOE"
    assert {"F16", "BF16", "Q4_0", "Q8_0", "Q4_K_M", "Q6_K"} <= set(quantization_names())
    with pytest.raises(VeloError, match="'q3_x'") as caught:
        find_quantization("q3_x")
    assert "Q4_K_M" in caught.value.hint


def test_q4_k_m_gives_more_bits_to_some_layers() -> None:
    found = types("llama3.1:8b", "q4_K_M")
    # use_more_bits for 32 layers: the first and last eighth, and every third between.
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_with(found, "ffn_down", "q6_k") == more
    assert layers_with(found, "attn_v", "q6_k") == more
    assert found["output.weight"] == "q6_k"
    assert found["token_embd.weight"] == "q4_k"
    assert found["blk.0.attn_norm.weight"] == found["rope_freqs.weight"] == "f32"


def test_tied_embeddings_get_the_format_of_an_output() -> None:
    assert types("llama3.2:1b", "q4_0")["token_embd.weight"] == "q6_k"


def test_rows_that_blocks_do_not_divide_fall_back() -> None:
    found = Counter(types("gemma3:1b", "q4_K_M").values())
    # Width 1152: four and a half blocks of 256. Only the rows of ffn_down and attn_output have whole ones.
    assert found["q5_0"] > 26
    assert types("gemma3:1b", "q4_K_M")["token_embd.weight"] == "q8_0"


def test_experts_in_mxfp4() -> None:
    found = types("qwen3moe:tiny", "mxfp4")
    assert found["blk.0.ffn_down_exps.weight"] == "mxfp4"
    assert found["blk.0.attn_q.weight"] == found["output.weight"] == "q8_0"
    assert found["blk.0.ffn_gate_inp.weight"] == "f32"


def test_eight_experts_and_seventy_billion_have_rules_of_their_own() -> None:
    mixtral = types("mixtral:8x7b", "q4_K_M")
    assert mixtral["blk.5.attn_v.weight"] == mixtral["blk.5.attn_k.weight"] == "q8_0"
    assert mixtral["blk.5.attn_output.weight"] == "q5_k"
    large = types("llama3.3:70b", "q4_K_M")
    assert {large[f"blk.{layer}.attn_v.weight"] for layer in range(80)} == {"q5_k", "q6_k"}


def test_pure_is_one_format() -> None:
    blueprint = draw_blueprint(get_family("llama:tiny").shape, Recipe("q8_0", pure=True))
    assert {tensor.type_name for tensor in blueprint.tensors} == {"f32", "q8_0"}
    assert {tensor.type_name for tensor in draw_blueprint(get_family("mamba2:tiny").shape, Recipe("f16")).tensors} == {
        "f32",
        "f16",
    }
