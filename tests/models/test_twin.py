"""Twins of models that are there: from a file, and from what an Ollama server tells."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import recorded
from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.models.families import get_family
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.succession import Succession
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.models.twin import draw_twin, model_of_header, model_of_shown


def show() -> dict[str, Any]:
    body = recorded("show")["body"]
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize(
    "name", ["granitehybrid:tiny", "deepseek2:tiny", "gemma3:tiny", "qwen3moe:tiny", "qwen35:tiny"]
)
def test_a_twin_of_a_file_has_its_shape_and_formats(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "first.gguf", draw_blueprint(get_family(name).shape, Recipe("q4_K_M")))
    first = read_gguf(tmp_path / "first.gguf")
    write_model(tmp_path / "twin.gguf", draw_twin(model_of_header(first, "first"), seed=2))
    twin = read_gguf(tmp_path / "twin.gguf")
    assert twin.tensors == first.tensors
    own, other = (model_facts(header, "x") for header in (first, twin))
    assert own.model_copy(update={"path": None, "made": None, "file_bytes": None}) == other.model_copy(
        update={"path": None, "made": None, "file_bytes": None}
    )
    assert other.made is not None
    assert other.made.like == "first"
    architecture = first.metadata["general.architecture"]
    kept = {key: value for key, value in first.metadata.items() if key.startswith(f"{architecture}.")}
    assert kept.items() <= twin.metadata.items()


def test_a_server_tells_the_same_as_the_file() -> None:
    header = read_gguf(shared_dir("models") / "tiny-python-5m-f16.gguf")
    told, read = model_of_shown(show(), "tiny-python"), model_of_header(header, "tiny-python")
    # The server sorts them in another way.
    assert set(told.tensors) == set(read.tensors)
    assert told.architecture == read.architecture
    # What float32 holds comes back from JSON in fewer digits.
    assert {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in told.entries.items()
    } == (dict(read.entries))
    kinds = {key: type(value) for key, value in told.entries.items()}
    assert kinds == {key: type(value) for key, value in read.entries.items()}


def test_another_mixture_and_chosen_text() -> None:
    model = model_of_shown(show(), "tiny-python")
    blueprint = draw_twin(model, quantization="q8_0", succession=Succession(0.7))
    found = {tensor.name: tensor.type_name for tensor in blueprint.tensors}
    assert found["blk.0.attn_q.weight"] == "q8_0"
    assert dict(blueprint.metadata)["velollm.synthetic.kind"] == "predictable"
    assert dict(blueprint.metadata)["general.file_type"] == 7


def test_a_tied_model_gets_an_output_for_chosen_text(tmp_path: Path) -> None:
    write_model(tmp_path / "tied.gguf", draw_blueprint(get_family("qwen3:tiny").shape, Recipe("q8_0")))
    model = model_of_header(read_gguf(tmp_path / "tied.gguf"), "tied")
    assert "output.weight" not in {tensor.name for tensor in draw_twin(model).tensors}
    assert draw_twin(model, succession=Succession(0.7)).tensors[-1].name == "output.weight"


def test_mtp_layers_of_a_twin_get_what_makes_them_agree(tmp_path: Path) -> None:
    write_model(tmp_path / "mtp.gguf", draw_blueprint(get_family("qwen35:tiny").shape, Recipe("q8_0")))
    model = model_of_header(read_gguf(tmp_path / "mtp.gguf"), "mtp")
    sure = draw_twin(model, succession=Succession(0.7))
    assert [tensor.name for tensor in sure.tensors[len(model.tensors) :]] == ["output.weight"]
    assert dict(sure.metadata)["velollm.synthetic.heads_agreement"] == 1
    wrong = draw_twin(model, succession=Succession(0.7, heads_agreement=0.5))
    assert wrong.tensors[-1].name == "blk.4.nextn.embed_tokens.weight"
    write_model(tmp_path / "wrong.gguf", wrong)
    made = model_facts(read_gguf(tmp_path / "wrong.gguf"), "wrong").made
    assert made is not None
    assert made.heads_agreement == 0.5
    with pytest.raises(VeloError, match="no MTP layers"):
        draw_twin(model_of_shown(show(), "plain"), succession=Succession(0.7, heads_agreement=0.5))


def test_towers_for_pictures_are_left_out() -> None:
    told = copy.deepcopy(show())
    told["tensors"].append({"name": "v.blk.0.attn_q.weight", "type": "F16", "shape": [64, 64]})
    told["model_info"]["llama.vision.block_count"] = 27
    model = model_of_shown(told, "seeing")
    assert model.tensors == model_of_shown(show(), "blind").tensors
    assert "llama.vision.block_count" not in model.entries


def test_what_cannot_have_a_twin() -> None:
    bare = show() | {"tensors": []}
    with pytest.raises(VeloError, match="does not tell the tensors of m"):
        model_of_shown(bare, "m")
    odd = copy.deepcopy(show())
    odd["tensors"][0]["type"] = "Q9_X"
    with pytest.raises(VeloError, match="number format q9_x, which is not known"):
        model_of_shown(odd, "m")
    nameless = copy.deepcopy(show())
    del nameless["model_info"]["general.architecture"]
    with pytest.raises(VeloError, match="does not tell its architecture"):
        model_of_shown(nameless, "m")
    silent = copy.deepcopy(show())
    silent["tensors"] = [item for item in silent["tensors"] if item["name"] != "token_embd.weight"]
    with pytest.raises(VeloError, match="no model that writes text"):
        draw_twin(model_of_shown(silent, "m"))
