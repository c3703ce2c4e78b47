"""The catalog: every row is whole, adds up to its published size, and gives a model whose memory can be estimated."""

from __future__ import annotations

import math

import pytest

from tests.shared import shared_dir
from velollm.models.catalog import (
    CatalogChoice,
    catalog_facts,
    catalog_names,
    find_catalog_choice,
    find_catalog_model,
    format_names,
    load_catalog,
    near_names,
)
from velollm.models.catalog_row import CatalogModel
from velollm.models.formats import find_format, load_formats
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.layout import layout
from velollm.models.memory import estimate_memory
from velollm.models.reads import active_weight_bytes
from velollm.models.types import tensor_type
from velollm.models.weights import catalog_tensors, reformatted
from velollm.models.yamlfile import load_rows, load_value
from velollm.units import MIB

ROWS = load_catalog()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
_TOKENIZER_BYTES = 20 * MIB


def test_every_model_of_the_source_is_here_once() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS) == 137
    tags = [tag for row in ROWS for tag in row.ollama]
    assert len(tags) == len(set(tags))


@each_row
def test_layers_and_lists_are_of_one_length(row: CatalogModel) -> None:
    assert len(row.pattern) == row.layers
    assert not isinstance(row.kv_heads, tuple) or len(row.kv_heads) == row.layers
    assert not isinstance(row.feed_forward_length, tuple) or len(row.feed_forward_length) == row.layers
    assert ("S" in row.pattern) == (row.sliding_window_tokens is not None)
    assert bool(set(row.pattern) & set("RH")) == (row.ssm is not None)


@each_row
def test_the_layout_adds_up_to_the_weights_of_the_shape(row: CatalogModel) -> None:
    total = 0
    for name, shape in layout(row):
        block = name.removeprefix("blk.").partition(".")[0]
        extra = row.output_in_file and name == "output.weight"
        if not extra and not (block.isdigit() and int(block) >= row.layers):
            total += math.prod(shape)
    # Scales and biases of a few hundred values are left out.
    assert total == pytest.approx(row.parameters_from_shape or row.parameters, rel=3e-4)


@each_row
def test_exact_file_sizes_are_met(row: CatalogModel) -> None:
    for name, size in row.file_bytes.items():
        form = find_format(name)
        assert form is not None
        tensors = sum(info.size_bytes or 0 for info in catalog_tensors(row, form))
        if row.architecture == "gemma3n":  # Which of its small matrices stay in 16 bits is not known.
            assert tensors == pytest.approx(size, rel=0.01)
        else:
            # The rest is the header with the tokenizer, up to 16 MB for the largest vocabularies.
            assert size - _TOKENIZER_BYTES <= tensors <= size * 1.002


@each_row
def test_rounded_file_sizes_are_met_as_well_as_they_are_rounded(row: CatalogModel) -> None:
    for name, size in row.file_gb.items():
        form = find_format(name)
        assert form is not None
        if row.basis == "memory" or row.id == "glm-4.7-flash-30b-a3b":  # shapes that were not read
            continue
        tensors = sum(info.size_bytes or 0 for info in catalog_tensors(row, form))
        assert tensors == pytest.approx(size * 1e9, rel=0.055)


@each_row
def test_memory_can_be_estimated_or_a_reason_is_named(row: CatalogModel) -> None:
    name = "q4_K_M" if row.default_quant != "mxfp4" else "mxfp4"
    form = find_format(name)
    assert form is not None
    model = catalog_facts(CatalogChoice(row, form))
    assert model.layers == row.layers
    assert sum(part.bytes for part in model.layer_parts or ()) > 0
    assert active_weight_bytes(model) is not None
    estimate = estimate_memory(model, {"context_tokens": 4096, "slots": 1, "load_mode": "none"})
    if estimate is None:
        assert row.architecture in {"deepseek2"}, "its cache or its graph is not known"
    else:
        # What turns pictures into embeddings is loaded beside the model.
        assert estimate.total_bytes > ((model.tensor_bytes or 0) - (model.projector_bytes or 0)) * 0.9


def test_names_with_and_without_a_format() -> None:
    model = find_catalog_model("llama3.1:8b@q4_K_M")
    assert model is not None
    assert (model.name, model.architecture, model.layers, model.file_type) == (
        "llama3.1:8b@q4_K_M",
        "llama",
        32,
        "Q4_K_M",
    )
    for same in ("llama3.1", "llama3.1:latest", "llama3.1-8b", "LLAMA3.1:8B@Q4_k_m", "llama3.1:8b"):
        found = find_catalog_model(same)
        assert found is not None
        assert found.tensor_bytes == model.tensor_bytes
    eight = find_catalog_choice("llama3.1:8b-instruct-q8_0")
    assert eight is not None
    assert (eight.row.id, eight.format.name, eight.ollama_name) == (
        "llama3.1-8b",
        "q8_0",
        "llama3.1:8b-instruct-q8_0",
    )
    assert find_catalog_model("no-such-model:1b") is None
    assert find_catalog_model("llama3.1:8b@q9_9") is None


def test_the_format_without_one_is_what_the_library_holds() -> None:
    for row in ROWS:
        if row.ollama and row.default_quant is not None:
            choice = find_catalog_choice(row.ollama[0])
            assert choice is not None
            assert choice.format == find_format(row.default_quant)
            assert choice.is_default


def test_near_names_are_offered() -> None:
    assert near_names("lama3.1:8b")[0] == "llama3.1:8b"
    assert "qwen3:4b" in catalog_names()
    assert near_names("qqqqqqqqqq") == ()


def test_every_format_is_whole() -> None:
    assert len(set(format_names())) == len(load_formats())
    names = [name.lower() for form in load_formats() for name in (form.name, *form.aliases)]
    assert len(names) == len(set(names))
    for form in load_formats():
        assert (form.base is None) == (form.bits_per_weight is not None)
        kinds = (form.base, form.output, form.embedding, form.more_bits, form.early, form.attn_v, form.ffn_down)
        assert all(tensor_type(kind) is not None for kind in kinds if kind is not None)


def test_formats_of_other_engines_cost_their_bits() -> None:
    full, awq = find_catalog_model("llama3.1:8b@f16"), find_catalog_model("llama3.1:8b@awq")
    assert full is not None
    assert awq is not None
    assert full.layer_parts is not None
    assert awq.layer_parts is not None
    assert awq.layer_parts[0].bytes / full.layer_parts[0].bytes == pytest.approx(4.15625 / 16, rel=0.001)
    assert awq.output_part is not None
    assert full.output_part is not None
    assert awq.output_part.bytes == pytest.approx(full.output_part.bytes, rel=0.001)


def test_more_bits_are_never_fewer_bytes() -> None:
    # Rows of 896 values are no whole number of blocks of 256, so small formats fall back to others there.
    for name in ("llama3.1:8b", "qwen2.5:7b", "qwen3:30b", "llama3.2:3b"):
        sizes = [
            model.tensor_bytes
            for form in ("f32", "f16", "q8_0", "q6_K", "q5_K_M", "q5_K_S", "q4_K_M", "q4_K_S", "q3_K_S", "q2_K")
            if (model := find_catalog_model(f"{name}@{form}")) is not None
        ]
        assert sizes == sorted(sizes, key=lambda size: -(size or 0))


def test_a_file_in_another_format_has_the_bytes_that_ollama_made() -> None:
    path = shared_dir("models") / "tiny-python-5m-f16.gguf"
    header = read_gguf(path)
    own = model_facts(header, "tiny")
    form = find_format("q8_0")
    assert form is not None
    made = reformatted(own, header.tensors, form)
    matrices = [info for info in header.tensors if len(info.shape) == 2]
    expected = sum(info.elements // 32 * 34 for info in matrices)
    expected += sum(info.size_bytes or 0 for info in header.tensors if len(info.shape) == 1)
    assert made.tensor_bytes == expected
    assert (made.layers, made.file_type, made.path) == (own.layers, "Q8_0", None)


def test_releases_and_drafts_are_whole() -> None:
    releases = load_rows("ollama-releases", "releases")
    assert len(releases) == 75
    assert len({row["version"] for row in releases}) == 75
    changes = [change for row in releases for change in row.get("changes", ())]
    problems = [problem for row in releases for problem in row.get("problems", ())]
    assert (len(changes), len(problems)) == (112, 68)
    assert all(change["lever"] for change in changes)
    assert all(problem["what"] and problem["issue"] for problem in problems)
    assert load_value("ollama-releases", "llama_cpp_pins")["0.33.0-rc2"] == "b10488"
    pairs = load_rows("drafts", "pairs")
    assert len({row["id"] for row in pairs}) == len(pairs) == 72
    assert {row["verdict"] for row in pairs} <= {"helps", "mixed", "hurts", "does-not-load", "unknown"}
    for row in pairs:
        low, high = row.get("speedup_range", (1, 1))
        assert 0 < low <= high
