"""Smaller files of a model that does not fit: of the catalog with their own sizes, of others by bits a weight."""

from __future__ import annotations

import pytest

from velollm.facts import Facts, ModelFacts
from velollm.knobs import Wish
from velollm.models.catalog import find_alike, find_catalog_model, load_catalog
from velollm.plan import load_profile
from velollm.probe.hardware import parse_hardware
from velollm.rules.base import Nearest
from velollm.rules.fit_memory import Solution, place_model
from velollm.rules.room import as_idle


def nearest(model: ModelFacts | None, memory: str) -> dict[str | None, Nearest]:
    assert model is not None
    facts: Facts = as_idle(parse_hardware(memory))
    solution = place_model(facts.model_copy(update={"model": model}), model, Wish(load_profile("chat"), {}))
    assert isinstance(solution, Solution)
    return {item.quantization: item for item in solution.nearest}


@pytest.mark.parametrize(("name", "row"), [("llama3.1:8b", "llama3.1-8b"), ("qwen3:14b", "qwen3-14b")])
def test_a_model_is_known_by_its_shape_whatever_its_name(name: str, row: str) -> None:
    model = find_catalog_model(name)
    assert model is not None
    renamed = model.model_copy(update={"name": "/models/mine.gguf"})
    found = find_alike(renamed)
    assert found is not None
    assert (found.layers, found.parameters) == next((r.layers, r.parameters) for r in load_catalog() if r.id == row)
    assert find_alike(model.model_copy(update={"layers": 7})) is None
    assert find_alike(ModelFacts(name="unknown")) is None


def test_smaller_files_of_a_catalog_model_have_their_own_sizes() -> None:
    found = nearest(find_catalog_model("gemma2:9b@f16"), "16 GB RAM")
    row = next(row for row in load_catalog() if row.id == "gemma2-9b")
    listed = {name: row.listed_bytes(name) for name in ("q8_0", "q4_K_M")}
    offered = [name for name in listed if name in found]
    assert offered
    for name in offered:
        size = listed[name]
        assert size is not None
        assert found[name].size_bytes == size[0]
        assert "about" not in found[name].text


def test_smaller_files_of_another_model_are_reckoned_by_bits_a_weight() -> None:
    known = find_catalog_model("gemma2:9b@f16")
    assert known is not None
    other = known.model_copy(update={"vocab": 250_000})
    found = nearest(other, "16 GB RAM")
    assert known.parameters is not None
    bits = {"q8_0": 8.5008, "q6_K": 6.5633, "q5_K_M": 5.7036, "q4_K_M": 4.8944}
    offered = [name for name in bits if name in found]
    assert offered
    for name in offered:
        assert found[name].size_bytes == round(bits[name] * known.parameters / 8)
        assert "(about " in found[name].text
