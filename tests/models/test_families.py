from __future__ import annotations

import pytest

from velollm.errors import VeloError
from velollm.models.catalog import load_catalog
from velollm.models.families import find_family, get_family, read_families
from velollm.models.quantization import is_quantization
from velollm.models.yamlfile import load_rows


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama3.2:1b", "llama3.2-1b"),
        ("LLAMA3.1", "llama3.1-8b"),
        ("llama3.1:latest", "llama3.1-8b"),
        ("qwen3-8b", "qwen3-8b"),
        ("granite4:micro-h", "granite4-3b-h"),
        ("mamba2:370m", "mamba2-370m"),
        ("mamba2", "mamba2-130m"),
        ("gemma3:tiny", "gemma3-tiny"),
        ("granitehybrid-moe:tiny", "granitehybrid-moe-tiny"),
    ],
)
def test_names_that_people_know(name: str, shape: str) -> None:
    found = find_family(name)
    assert found is not None
    assert found.shape.name == shape


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama3.2:1b", "q8_0"),
        ("llama3.1:8b@q4_0", "q4_0"),
        ("llama3.2:1b-Q4_K_M", "q4_k_m"),
        ("qwen3:8b-fp16", "f16"),
    ],
)
def test_the_quantization_behind_a_name(name: str, quantization: str) -> None:
    found = find_family(name)
    assert found is not None
    assert found.quantization.lower() == quantization


@pytest.mark.parametrize(
    "name",
    ["qwen3:8b@q99", "qwen3:8b-large", "@q4_0", "-q4_0", "", "qwen3:9b", "gpt-9", "model.gguf", "./qwen3", ":8b"],
)
def test_other_names_are_none(name: str) -> None:
    assert find_family(name) is None


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(VeloError, match="'qwen3:9b'") as caught:
        get_family("qwen3:9b")
    assert "known sizes: qwen3:0.6b" in caught.value.hint
    with pytest.raises(VeloError, match="'quux'") as caught:
        get_family("quux")
    assert "known families:" in caught.value.hint
    assert all(family in caught.value.hint for family in ("gemma3", "mamba2", "granite4"))


def test_the_usual_quantizations_can_be_made() -> None:
    assert all(is_quantization(family.quantization) for family in read_families())


def test_no_name_is_given_twice() -> None:
    names = [name.lower() for family in read_families() for name in family.names]
    assert len(names) == len(set(names))


def test_no_shape_is_stated_twice() -> None:
    """The catalog owns the shapes of its models; beside it stands only what it does not say."""
    entries = load_rows("families", "models")
    assert {key for entry in entries for key in entry} <= {"id", "rope"}
    ids = [row["id"] for name in ("models", "tiny-families") for row in load_rows(name, "models")]
    assert len(ids) == len(set(ids))
    known = {row.id: row for row in load_catalog()}
    for entry in entries:
        family = get_family(entry["id"])
        row = known[entry["id"]]
        assert (family.shape.layers, family.shape.vocab, family.name) == (row.layers, row.vocab, family.names[0])
