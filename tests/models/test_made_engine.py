"""Made models of every architecture in the real engine: they load and write, and chosen text is what was chosen."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.models.dflash import write_dflash
from tests.models.test_engine import run_engine
from velollm.models.families import get_family, read_families
from velollm.models.succession import Succession, followers_of
from velollm.models.synthetic import Recipe, draw_blueprint, write_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine is not installed"
)

TINY = [family.name for family in read_families() if family.name.endswith(":tiny")]
CHOSEN = Succession(0.7, 40)
GREEDY = {"prompt": "Hello", "n_predict": 60, "temperature": 0, "return_tokens": True}
SAMPLED = {**GREEDY, "n_predict": 400, "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 1}


def make(name: str, directory: Path, recipe: Recipe) -> Path:
    path = directory / f"{name.replace(':', '-')}-{recipe.quantization}.gguf"
    write_model(path, draw_blueprint(get_family(name).shape, recipe))
    return path


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_loads_and_writes_varied_text(name: str, tmp_path: Path) -> None:
    quant = "mxfp4" if "moe" in name else "q4_K_M"
    answer, _ = run_engine(make(name, tmp_path, Recipe(quant)), ["any text, ünïcödé"], threads=1)
    assert answer["back"] == ["any text, ünïcödé"]
    first, second = answer["answers"]
    assert len(first) == len(second) == 24
    assert first != second
    assert len(set(first)) > 12
    assert all(math.isfinite(value) and value <= 0 for value in answer["logprobs"])
    assert max(answer["logprobs"]) < math.log(0.9)


def followed(answer: dict[str, Any], succession: Succession, vocab: int = 2048) -> float:
    """Share of tokens that are the follower of the one before."""
    followers = followers_of(succession, vocab, 259)
    tokens = answer["tokens"]
    return sum(bool(followers[a] == b) for a, b in pairwise(tokens)) / (len(tokens) - 1)


@pytest.mark.parametrize(
    ("name", "quant"),
    [("llama:tiny", "f16"), ("gemma3:tiny", "q4_0"), ("granitehybrid:tiny", "q4_K_M"), ("qwen35:tiny", "q4_0")],
)
def test_chosen_text_is_written(name: str, quant: str, tmp_path: Path) -> None:
    path = make(name, tmp_path, Recipe(quant, succession=CHOSEN))
    greedy, sampled = run_engine(path, threads=1, context=2048, asked=[GREEDY, SAMPLED])[0]["asked"]
    assert followed(greedy, CHOSEN) == 1
    assert len(set(greedy["tokens"])) == 40
    # 400 draws: four standard errors.
    assert followed(sampled, CHOSEN) == pytest.approx(0.7, abs=4 * math.sqrt(0.7 * 0.3 / 400))


def test_a_draft_is_accepted_as_often_as_it_agrees(tmp_path: Path) -> None:
    path = make("llama:tiny", tmp_path, Recipe("q8_0", succession=CHOSEN))
    shape = replace(get_family("llama:tiny").shape, name="draft", layers=1)
    draft = tmp_path / "draft.gguf"
    write_model(draft, draw_blueprint(shape, Recipe("q4_0", succession=replace(CHOSEN, agreement=0.75))))
    settings: dict[str, Any] = {"context": 2048, "speculation": "draft-simple", "draft": str(draft), "threads": 1}
    (answer,) = run_engine(path, asked=[{**GREEDY, "n_predict": 400}], **settings)[0]["asked"]
    assert followed(answer, CHOSEN) == 1
    # The engine drafts three tokens; one is accepted where it and all before it agree.
    expected = (0.75 + 0.75**2 + 0.75**3) / 3
    accepted, drafted = (answer["timings"][name] for name in ("draft_n_accepted", "draft_n"))
    assert drafted > 300
    assert accepted / drafted == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(("share", "quant"), [(None, "q4_K_M"), (0.75, "q8_0")])
def test_mtp_layers_are_accepted_as_often_as_they_agree(share: float | None, quant: str, tmp_path: Path) -> None:
    path = make("qwen35:tiny", tmp_path, Recipe(quant, succession=replace(CHOSEN, heads_agreement=share)))
    body = {**GREEDY, "n_predict": 400}
    (answer,) = run_engine(path, threads=1, context=2048, speculation="draft-mtp", asked=[body])[0]["asked"]
    assert followed(answer, CHOSEN) == 1
    accepted, drafted = (answer["timings"][name] for name in ("draft_n_accepted", "draft_n"))
    if share is None:
        assert accepted == drafted > 250
        return
    assert drafted > 300
    assert accepted / drafted == pytest.approx((share + share**2 + share**3) / 3, abs=0.08)


@pytest.mark.parametrize("name", ["llama:tiny", "qwen35:tiny"])
def test_a_dflash_draft_is_right_at_every_second_token(name: str, tmp_path: Path) -> None:
    """Two tokens take turns, and it guesses the one for every place: of what follows the other, the first is right."""
    turns = Succession(0.7, 2)
    path = make(name, tmp_path, Recipe("q8_0", succession=turns))
    (plain,) = run_engine(path, threads=1, asked=[GREEDY])[0]["asked"]
    unknown = plain["tokens"][-1]
    draft = write_dflash(tmp_path / "dflash.gguf", get_family(name).shape, turns, unknown=unknown)
    settings: dict[str, Any] = {"speculation": "draft-dflash", "draft": str(draft), "threads": 1}
    (answer,) = run_engine(path, asked=[GREEDY], **settings)[0]["asked"]
    assert answer["tokens"] == plain["tokens"]
    accepted, drafted = (answer["timings"][name] for name in ("draft_n_accepted", "draft_n"))
    assert accepted >= 28
    assert accepted / drafted == pytest.approx(1 / 3, abs=0.03)


def test_repeating_text_is_drafted_from_itself(tmp_path: Path) -> None:
    path = make("llama:tiny", tmp_path, Recipe("q8_0", succession=CHOSEN))
    body = {**GREEDY, "n_predict": 400}
    (answer,) = run_engine(path, threads=1, context=2048, speculation="ngram-mod", asked=[body])[0]["asked"]
    assert followed(answer, CHOSEN) == 1
    assert answer["timings"]["draft_n_accepted"] > 200
