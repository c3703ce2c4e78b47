"""The table of drafts, and which of the files at hand fit a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.models.dflash import write_dflash
from tests.models.files import write_gguf
from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.facts import PartFacts
from velollm.models.catalog import find_catalog_choice
from velollm.models.drafts import draft_choices, load_draft_pairs, own_heads, pairs_for
from velollm.models.families import get_family
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.succession import Succession
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.models.tokenizer import TOKENS
from velollm.models.writer import NewTensor, WriteValue


def made(path: Path, family: str, succession: Succession | None = None, layers: int | None = None) -> Path:
    shape = get_family(family).shape
    shape = shape if layers is None else replace(shape, layers=layers)
    write_model(path, draw_blueprint(shape, Recipe("q4_0", succession=succession)))
    return path


def test_the_table_says_what_its_source_says() -> None:
    source = yaml.safe_load((shared_dir("data") / "drafts.yaml").read_text(encoding="utf-8"))["pairs"]
    rows = {row.id: row for row in load_draft_pairs()}
    assert len(rows) == len(source) == 72
    for pair in source:
        row = rows[pair["id"]]
        assert (row.kind, row.verdict, row.same_vocab) == (pair["kind"], pair["verdict"], pair["same_vocab"])
        assert (row.licence, row.vocab_evidence) == (pair["licence"] or None, pair["vocab_evidence"] or None)
        assert row.main_ollama == tuple(pair["main_ollama"])
        assert row.draft_ollama == ((pair["draft_ollama"],) if pair["draft_ollama"] else ())
        told = [
            result for result in pair["results"] if result["acceptance"] is not None or "acceptance_range" in result
        ]
        assert len(row.acceptance) == len(told)
        for report, result in zip(row.acceptance, told, strict=True):
            low, high = result.get("acceptance_range") or (result["acceptance"],) * 2
            assert (report.low, report.high, report.workload) == (low, high, result["workload"])
            assert 0 <= report.low <= report.high <= 1 and report.source


def test_every_main_and_draft_has_a_name_that_ollama_could_have() -> None:
    for row in load_draft_pairs():
        assert all(":" in name and " " not in name for name in (*row.main_ollama, *row.draft_ollama)), row.id
        assert row.source and len(row.source) > 3


@pytest.mark.parametrize(
    "name", ["qwen2.5-coder:32b", "qwen2.5-coder:32b-instruct-q8_0", "library/qwen2.5-coder:32b", "Qwen2.5-Coder:32B"]
)
def test_a_model_is_found_by_its_names(name: str) -> None:
    ids = [row.id for row in pairs_for(name)]
    assert ids == ["qwen2.5-coder-32b+0.5b", "qwen2.5-coder-32b+1.5b", "qwen2.5-coder-32b+3b"]


def test_a_model_of_another_name_is_found_by_its_header() -> None:
    names: dict[str, int | float | bool | str] = {
        "general.basename": "Meta-Llama-3.1", "general.size_label": "8B",
    }  # fmt: skip
    assert [row.id for row in pairs_for("my-own", names)] == [row.id for row in pairs_for("llama3.1:8b")]
    assert pairs_for("my-own", {"general.basename": "Meta-Llama-3.1"}) == ()
    assert pairs_for(None) == ()
    # The name of a model that the table knows counts more than its header.
    assert [row.id for row in pairs_for("gemma3:4b", names)] == ["gemma3-4b..27b+1b"]


def test_most_mains_are_in_the_catalog() -> None:
    mains = {name for row in load_draft_pairs() if row.kind == "draft-simple" for name in row.main_ollama}
    assert sum(find_catalog_choice(name) is not None for name in mains) >= 0.8 * len(mains)


def test_choices_at_hand_are_sorted_and_each_misfit_has_its_reason(tmp_path: Path) -> None:
    text = Succession(0.9, period=64)
    main = made(tmp_path / "main.gguf", "qwen3:tiny", text, layers=8)
    good = made(tmp_path / "good.gguf", "qwen3:tiny", Succession(0.9, 64, agreement=0.8), layers=1)
    poor = made(tmp_path / "poor.gguf", "qwen3:tiny", Succession(0.9, 64, agreement=0.3), layers=1)
    large = made(tmp_path / "large.gguf", "qwen3:tiny", layers=16)
    real = shared_dir("models") / "tiny-python-draft-f16.gguf"
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF")
    embeds: dict[str, WriteValue] = {
        "general.architecture": "qwen3", "qwen3.pooling_type": 3, "tokenizer.ggml.model": "gpt2", TOKENS: ["a"],
    }  # fmt: skip
    other = write_gguf(tmp_path / "embeds.gguf", embeds.items())
    at_hand = [("poor", poor), ("good", good), ("again", good), ("main", main), ("large", large), ("real", real)]
    found = draft_choices(main, [*at_hand, ("damaged", damaged), ("embeds", other)], name="mine")
    assert [choice.name for choice in found.fit] == ["good", "poor"]
    first = found.fit[0]
    assert first.cost_ratio is not None and 0 < first.cost_ratio < 1
    assert first.acceptance is not None
    assert (first.acceptance.low, first.acceptance.basis) == (0.8, "made")
    reasons = {choice.name: choice.compatibility.reason for choice in found.unfit}
    assert set(reasons) == {"large", "real"}
    assert "times the bytes of the model" in reasons["large"]
    assert reasons["real"].startswith("the draft's tokenizer is BPE")


def test_reported_acceptance_comes_with_who_reported_it(tmp_path: Path) -> None:
    main = made(tmp_path / "main.gguf", "qwen3:tiny", layers=8)
    draft = made(tmp_path / "draft.gguf", "qwen3:tiny", layers=1)
    (choice,) = draft_choices(main, [("llama3.2:1b", draft)], name="llama3.1:8b").fit
    assert choice.pair is not None and choice.pair.id == "llama3.1-8b+llama3.2-1b"
    assert choice.acceptance is not None and choice.acceptance.basis == "table"
    assert choice.acceptance.low == choice.acceptance.high == 0.7206
    assert all("#" in line or "http" in line for line in choice.acceptance.evidence)
    (unknown,) = draft_choices(main, [("mine", draft)], name="mine-too").fit
    assert unknown.acceptance is None and unknown.pair is None


def test_a_draft_of_a_kind_that_is_not_tried_is_none(tmp_path: Path) -> None:
    words: dict[str, WriteValue] = {"tokenizer.ggml.model": "llama", TOKENS: ["a", "b"]}
    main, plain, trained = (
        write_gguf(tmp_path / f"{name}.gguf", {**words, "general.architecture": name}.items())
        for name in ("llama", "qwen3", "eagle3")
    )
    found = draft_choices(main, [("plain", plain), ("trained", trained)])
    assert [choice.name for choice in found.fit] == ["plain"]
    assert found.fit[0].cost_ratio is None
    assert [(choice.name, choice.kind) for choice in found.unfit] == [("trained", "draft-eagle3")]
    assert "trained for one model" in found.unfit[0].compatibility.reason


def test_a_dflash_draft_fits_a_model_whose_states_it_reads(tmp_path: Path) -> None:
    shape = get_family("llama:tiny").shape
    main = made(tmp_path / "main.gguf", "llama:tiny")
    (found,) = draft_choices(main, [("d", write_dflash(tmp_path / "d.gguf", shape, None, unknown=400))]).fit
    assert (found.kind, found.compatibility.fits) == ("draft-dflash", True)
    assert "in layers 1, 2" in found.compatibility.reason
    # Its two layers, what fuses the states, and the model's output matrix, in one pass for three tokens.
    assert found.cost_ratio is not None and 0.2 < found.cost_ratio < 0.7


@pytest.mark.parametrize(
    ("main", "changes", "words"),
    [
        ("gemma3:tiny", {}, "does not hand out the inner states of gemma3"),
        ("llama:tiny", {"embedding_length": 512}, "states of 512 values, and those of the model have 256"),
        ("llama:tiny", {"layers": 9}, "reads layer 8, and the model's last is 2"),
        ("llama:tiny", {"vocab": 3000}, "tokens"),
    ],
)
def test_a_dflash_draft_that_the_engine_would_end_with(
    main: str, changes: dict[str, int], words: str, tmp_path: Path
) -> None:
    path = made(tmp_path / "main.gguf", main)
    other = replace(get_family(main).shape, **changes)  # type: ignore[arg-type]
    draft = write_dflash(tmp_path / "d.gguf", other, None, unknown=400)
    (found,) = draft_choices(path, [("d", draft)]).unfit
    assert found.kind == "draft-dflash"
    assert words in found.compatibility.reason


def test_a_dspark_draft_is_none(tmp_path: Path) -> None:
    words: dict[str, WriteValue] = {"tokenizer.ggml.model": "llama", TOKENS: ["a", "b"]}
    main = write_gguf(tmp_path / "m.gguf", {**words, "general.architecture": "llama"}.items())
    markov = NewTensor("markov_w1.weight", (32, 2), "f32")
    draft = write_gguf(tmp_path / "d.gguf", {**words, "general.architecture": "dflash"}.items(), [markov])
    (found,) = draft_choices(main, [("d", draft)]).unfit
    assert (found.kind, "DSpark" in found.compatibility.reason) == ("draft-dspark", True)


def test_heads_of_its_own_are_a_choice(tmp_path: Path) -> None:
    facts = model_facts(read_gguf(made(tmp_path / "m.gguf", "qwen3:tiny")), "m")
    assert own_heads(facts, ()) is None
    update = {"architecture": "qwen35", "mtp_layers": 1, "mtp_parts": (facts.layer_parts or ())[:1]}
    with_heads = facts.model_copy(update=update)
    heads = own_heads(with_heads, pairs_for("qwen3.6:27b"))
    assert heads is not None and heads.path is None and heads.kind == "draft-mtp" and heads.compatibility.fits
    assert heads.pair is not None and heads.pair.id == "qwen3.6-27b-mtp"
    assert heads.cost_ratio is not None and 0 < heads.cost_ratio < 1
    for lacking in ({"architecture": "glm4moe"}, {"mtp_parts": (PartFacts(bytes=0),)}):
        idle = own_heads(with_heads.model_copy(update=lacking), ())
        assert idle is not None and not idle.compatibility.fits


def test_heads_of_a_made_model_agree_as_they_were_made(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    chosen = Succession(0.8, 40, heads_agreement=0.75)
    write_model(path, draw_blueprint(get_family("qwen35:tiny").shape, Recipe("q8_0", succession=chosen)))
    (heads,) = draft_choices(path, []).fit
    assert heads.kind == "draft-mtp" and heads.acceptance is not None
    assert (heads.acceptance.low, heads.acceptance.basis) == (0.75, "made")
    # A layer of four, and the output matrix that every guess passes too.
    assert heads.cost_ratio is not None and 0.25 < heads.cost_ratio < 0.7


def test_a_main_without_tokenizer_is_refused(tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}.items())
    draft = made(tmp_path / "d.gguf", "qwen3:tiny")
    with pytest.raises(VeloError, match="no tokenizer"):
        draft_choices(plain, [("d", draft)])
