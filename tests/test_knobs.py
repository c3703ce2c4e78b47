from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.knobs import KNOBS, KV_TYPES, QUANTIZED_KV_TYPES, parse_knob_value


def test_every_knob_says_what_it_is() -> None:
    for name, knob in KNOBS.items():
        assert knob.name == name
        assert knob.unit
        assert knob.summary
        assert len(knob.explain) > 40
        assert bool(knob.choices) + (knob.minimum is not None) + (name == "draft_model") == 1


def test_what_can_change_answers() -> None:
    found = {name for name, knob in KNOBS.items() if knob.changes_answer}
    assert found == {"kv_type_k", "kv_type_v", "cache_reuse"}
    assert set(KV_TYPES) > QUANTIZED_KV_TYPES
    assert "f16" not in QUANTIZED_KV_TYPES


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threads", "4", 4),
        ("threads", " 12 ", 12),
        ("context_tokens", "8192", 8192),
        ("kv_type_k", "Q8_0", "q8_0"),
        ("flash_attention", "ON", "on"),
        ("keep_alive_s", "30m", 1800),
        ("keep_alive_s", "-1", -1),
        ("keep_alive_s", "0", 0),
        ("speculation", "ngram-mod", "ngram-mod"),
        ("draft_model", "/Models/Draft.gguf", "/Models/Draft.gguf"),
        ("repack", "off", "off"),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert parse_knob_value(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("speed", "1", "no knob 'speed'"),
        ("threads", "0", "threads"),
        ("threads", "-2", "threads"),
        ("threads", "2.5", "threads"),
        ("threads", "many", "many"),
        ("threads", "", "threads"),
        ("context_tokens", "3", "context_tokens"),
        ("kv_type_v", "q9_9", "one of f16"),
        ("load_mode", "fast", "one of auto"),
        ("keep_alive_s", "soon", "keep_alive_s"),
        ("keep_alive_s", "inf", "keep_alive_s"),
    ],
)
def test_wrong_values_say_why(name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_knob_value(name, text)


@given(st.sampled_from(sorted(KNOBS)), st.text(max_size=12))
def test_any_text_is_a_value_or_refused(name: str, text: str) -> None:
    knob = KNOBS[name]
    try:
        value = parse_knob_value(name, text)
    except ValueError:
        return
    if knob.choices:
        assert value in knob.choices
    elif name == "draft_model":
        assert value == text.strip()
    else:
        assert isinstance(value, (int, float))
        assert knob.minimum is not None
        assert value >= knob.minimum
