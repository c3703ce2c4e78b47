"""Shapes and tensors of all architectures, against the catalog's own counts and sizes."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.models.architectures import architecture_names, find_architecture
from velollm.models.families import get_family, read_families
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.quantization import choose_types, find_quantization
from velollm.models.shape import Shape, cut_layers, parse_shape
from velollm.models.synthetic import Recipe, draw_blueprint, made_model_facts
from velollm.models.writer import data_bytes

ARCHITECTURES = ("deepseek2", "gemma3", "granitehybrid", "llama", "mamba2", "qwen3", "qwen35", "qwen3moe")
TINY = tuple(family for family in read_families() if family.name.endswith(":tiny"))
# Files of llama.cpp's own quantizer. Ollama's makes others of Qwen3, and Gemma 3 has a vision tower from 4B on.
LIKE_LLAMA_CPP = ("llama3.2-3b", "llama3.3-70b", "qwen3-30b-a3b", "qwen3-coder-30b-a3b", "devstral-24b")
HEADER_SHARE = 0.006


@cache
def catalog() -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries: list[dict[str, Any]] = yaml.load((shared_dir("data") / "models.yaml").read_text(), loader)["models"]
    return [entry for entry in entries if entry["arch"] in ARCHITECTURES]


def test_models_of_eight_architectures_can_be_made() -> None:
    assert architecture_names() == ARCHITECTURES
    with pytest.raises(VeloError, match="'phi3' cannot be made from a shape") as caught:
        find_architecture("phi3")
    assert "--like" in caught.value.hint


def test_made_models_have_the_weights_that_the_catalog_counts() -> None:
    found = {}
    for entry in catalog():
        shape = replace(parse_shape(entry), mtp_layers=0)  # the catalog counts those apart
        parts = find_architecture(shape.architecture).tensors(shape)
        found[entry["id"]] = sum(_elements(size) for _, size in parts) / entry["params_from_shape"]
    assert len(found) > 40
    # Rotary factors of Llama 3 are a few values that the catalog does not count.
    assert {name: share for name, share in found.items() if abs(share - 1) > 1e-7} == {}


def _elements(size: tuple[int, ...]) -> int:
    total = 1
    for length in size:
        total *= length
    return total


def test_mixtures_have_the_size_of_real_files() -> None:
    sizes = {entry["id"]: (entry, entry.get("gguf_bytes") or {}) for entry in catalog()}
    for name in LIKE_LLAMA_CPP:
        entry, known = sizes[name]
        shape = parse_shape(entry)
        tensors = choose_types(
            find_architecture(shape.architecture).tensors(shape),
            find_quantization("q4_K_M"),
            layers=shape.layers,
            experts=entry.get("expert_count") or 0,
            grouped_heads=True,
        )
        header = known["q4_K_M"] - data_bytes(tensors)
        assert -0.0001 * known["q4_K_M"] < header < HEADER_SHARE * known["q4_K_M"], name


def test_the_shipped_shapes_are_those_of_the_catalog() -> None:
    shipped = {family.shape.name: family.shape for family in read_families()}
    assert {entry["id"]: parse_shape(entry) for entry in catalog()}.items() <= shipped.items()


@pytest.mark.parametrize("family", TINY, ids=lambda family: str(family.shape.name))
def test_the_header_says_what_the_shape_is(family: Any) -> None:
    shape: Shape = family.shape
    facts = made_model_facts(shape, Recipe("q8_0"))
    assert (facts.architecture, facts.layers, facts.vocab) == (shape.architecture, shape.layers, shape.vocab)
    assert (facts.embedding_length, facts.context_train) == (shape.embedding_length, shape.context_train)
    assert (facts.mtp_layers or 0, len(facts.mtp_parts or ())) == (shape.mtp_layers, shape.mtp_layers)
    assert facts.made is not None
    assert facts.made.kind == "random"
    recurrent = tuple(shape.recurs(layer) for layer in range(shape.layers))
    assert facts.recurrent_layers == recurrent
    if shape.recurrent is not None:
        assert facts.ssm is not None
        assert (facts.ssm.inner_size, facts.ssm.state_size) == (shape.recurrent.inner_size, shape.recurrent.state_size)
    if shape.latent is not None:
        assert facts.mla is not None
        assert (facts.mla.kv_lora_rank, facts.mla.rope_dims) == (shape.latent.kv_rank, shape.latent.rope_dims)
    elif shape.heads:
        attending = tuple(0 if recurs else shape.kv_heads for recurs in recurrent)
        assert (facts.kv_heads, facts.key_length) == (attending, shape.key_length)
    if shape.sliding_window is not None:
        assert facts.sliding_layers == tuple(letter == "S" for letter in shape.layer_pattern)
    if shape.experts is not None:
        assert (facts.experts, facts.experts_used) == (shape.experts.count, shape.experts.used)


@given(
    st.sampled_from(TINY),
    st.integers(1, 4).map(lambda n: 256 * n),
    st.integers(355, 3000),
    st.sampled_from(["f16", "q4_0", "q8_0", "q4_K_M"]),
    st.booleans(),
)
def test_any_shape_gives_a_file_that_reads_back(family: Any, width: int, vocab: int, quant: str, tied: bool) -> None:
    recurrent = family.shape.recurrent
    shape = replace(
        family.shape,
        embedding_length=width,
        vocab=vocab,
        tied=tied,
        recurrent=recurrent and replace(recurrent, inner_size=2 * width),
    )
    blueprint = draw_blueprint(shape, Recipe(quant))
    facts = made_model_facts(shape, Recipe(quant))
    assert facts.file_bytes == blueprint.file_bytes
    assert facts.tensor_bytes == sum(tensor.size_bytes for tensor in blueprint.tensors)
    assert ("output.weight" in {tensor.name for tensor in blueprint.tensors}) is not tied


def test_a_shape_can_be_cut_in_layers(tmp_path: Path) -> None:
    shape = cut_layers(get_family("granite4:tiny-h").shape, 6)
    assert (shape.layers, shape.layer_pattern) == (6, "RRRRRA")
    path = tmp_path / "cut.gguf"
    blueprint = draw_blueprint(shape, Recipe("q4_0"))
    path.write_bytes(blueprint.header)
    os.truncate(path, blueprint.file_bytes)
    assert model_facts(read_gguf(path), "cut").kv_heads == (0, 0, 0, 0, 0, 4)
    with pytest.raises(VeloError, match="has 6 layers, not 7"):
        cut_layers(shape, 7)


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "mamba2", "granitehybrid", "qwen35"])
def test_a_shape_that_lacks_a_part_is_refused(architecture: str) -> None:
    plain = get_family("llama:tiny").shape
    with pytest.raises(VeloError, match="has no"):
        draw_blueprint(replace(plain, architecture=architecture))
