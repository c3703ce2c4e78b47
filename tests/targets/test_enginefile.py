from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.knobs import KnobValue
from velollm.targets.enginefile import parse_engine_settings, render_engine_settings

NAMES = st.text("abnoyef019 .:/-_#'\"{}[]&*!|>%@`~?,=\\é☃😀\u2028\x85", min_size=1, max_size=12)
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), NAMES)
MODELS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), max_size=3)


def test_an_empty_file_has_no_settings() -> None:
    for text in ("", "# only a note\n", "models:\n", "models: {}\n", "version: 2\n"):
        assert parse_engine_settings(text) == {}


def test_settings_of_each_model() -> None:
    text = "models:\n  llama3:8b: {threads: 4, flash_attention: 'on'}\n  /m/a b.gguf:\n"
    assert parse_engine_settings(text) == {"llama3:8b": {"threads": 4, "flash_attention": "on"}, "/m/a b.gguf": {}}


@given(MODELS, NAMES, st.dictionaries(NAMES, st.one_of(st.none(), VALUES), max_size=3))
def test_only_the_named_knobs_of_the_named_model_change(
    models: dict[str, dict[str, KnobValue]], model: str, changes: dict[str, KnobValue]
) -> None:
    text = yaml.safe_dump({"other": [1], "models": models})
    after = render_engine_settings(text, model, changes)
    wanted = {name: value for name, value in {**models.get(model, {}), **changes}.items() if value is not None}
    expected = {name: knobs for name, knobs in {**models, model: wanted}.items() if knobs}
    assert parse_engine_settings(after) == expected
    assert yaml.safe_load(after)["other"] == [1]


def test_what_is_so_already_changes_no_byte() -> None:
    text = "models: {m: {threads: 4}}  # mine"
    assert render_engine_settings(text, "m", {"threads": 4, "batch": None}) == text
    assert render_engine_settings("", "m", {}) == ""


def test_words_that_yaml_takes_for_others_stay_words() -> None:
    text = render_engine_settings("", "on", {"flash_attention": "on", "load_mode": "none", "kv_type_k": "1e3"})
    assert parse_engine_settings(text) == {"on": {"flash_attention": "on", "load_mode": "none", "kv_type_k": "1e3"}}


@pytest.mark.parametrize(
    "text",
    [
        "models: [",
        "models: {m: {a: 1}",
        "- models",
        "just words",
        "models: [m]",
        "models: {m: [1]}",
        "models: {m: {threads: [1]}}",
        "models: {m: {2: 1}}",
        "models: {1: {threads: 2}}",
        "models: {m: {threads: 2001-01-01}}",
        "models: {m: {threads: 2001-13-41}}",
        "a: !!python/object:os.system x",
        "models: \0",
        "[" * 500,
    ],
)
def test_a_damaged_file_is_an_error_and_is_not_overwritten(text: str) -> None:
    for act in (parse_engine_settings, lambda t: render_engine_settings(t, "m", {"threads": 1})):
        with pytest.raises(VeloError, match="damaged") as caught:
            act(text)
        assert "undo" in caught.value.hint
        assert "\n" not in caught.value.message
