"""The same model in other number formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.models.files import header_of
from velollm.models.header import read_gguf
from velollm.models.siblings import same_model, worth_trying
from velollm.models.synthetic import TINY, Recipe, ensure_model
from velollm.models.writer import WriteValue


def test_another_format_is_the_same_model_and_another_shape_is_not(tiny: Path, tmp_path: Path) -> None:
    own = read_gguf(tiny)
    assert same_model(own, read_gguf(ensure_model(TINY, tmp_path, Recipe("f16"))))
    assert not same_model(own, read_gguf(ensure_model(replace(TINY, layers=5), tmp_path)))


def test_a_name_that_differs_tells_models_apart_and_one_that_is_absent_does_not(tmp_path: Path) -> None:
    base: dict[str, WriteValue] = {"general.architecture": "llama", "llama.block_count": 2}
    plain = header_of(tmp_path, base)
    chat = header_of(tmp_path, {**base, "general.basename": "Llama", "general.finetune": "Instruct"})
    code = header_of(tmp_path, {**base, "general.basename": "Llama", "general.finetune": "Code"})
    assert same_model(plain, chat)
    assert same_model(chat, chat)
    assert not same_model(chat, code)
    assert not same_model(header_of(tmp_path, {}), header_of(tmp_path, {}))


@given(st.lists(st.integers(1, 100), max_size=8), st.one_of(st.none(), st.integers(1, 200)))
def test_the_smallest_usual_one_and_the_largest(sizes: list[int], parameters: int | None) -> None:
    chosen = worth_trying(sizes, parameters)
    assert len(chosen) == len(set(chosen)) <= 2
    assert bool(chosen) == bool(sizes)
    if chosen:
        assert sizes[chosen[-1]] == max(sizes)


def test_below_four_bits_only_where_there_is_no_other() -> None:
    assert worth_trying([300, 560, 1060], 1000) == [1, 2]
    assert worth_trying([300], 1000) == [0]
    assert worth_trying([560], 1000) == [0]
