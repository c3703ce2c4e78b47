"""Settings inside what a target holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.status.contents import parse_settings_of
from velollm.targets.base import Address, State, canonical_json
from velollm.targets.launchd import render_agent


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("A=1\nexport B='x y'\n# C=3\n", {"A": "1", "B": "x y"}),
        ('[Service]\nEnvironment="OLLAMA_NUM_PARALLEL=4" OTHER=1\nEnvironment=X=2\n', None),
        ("models:\n  a.gguf:\n    threads: 4\n", {"a.gguf: threads": "4"}),
        ('{"base":"00","parameters":[["num_ctx","8"],["stop","a"],["stop","b"]]}', {"num_ctx": "8", "stop": "a b"}),
        ('{"original":"00"}', {}),
        ('{"digest":"00","keep":true,"name":"x"}', {"keep": "true", "name": "x"}),
        ("", {}),
        ("[Service]\nEnvironment=A=50%%\nUnsetEnvironment=B\n", {"A": "50%", "B": ""}),
        ('services:\n  ollama:\n    environment:\n      A: "1"\n      B: x$$y\n', {"A": "1", "B": "x$y"}),
        ("# mine\nservices:\n  web: {}\n  ollama:\n    environment: [A=1, B]\n", {"A": "1"}),
        (render_agent({"A": "x y"}).decode(), {"A": "x y"}),
    ],
)
def test_each_kind_of_content(text: str, settings: dict[str, str] | None) -> None:
    found = parse_settings_of(State.of_text(text))
    assert found == ({"OLLAMA_NUM_PARALLEL": "4", "OTHER": "1", "X": "2"} if settings is None else settings)


@pytest.mark.parametrize(
    ("text", "address", "settings"),
    [
        ("a b", {"kind": "launchd-variable", "name": "A"}, {"A": "a b"}),
        ('{"type":1,"value":"4"}', {"kind": "windows-variable", "name": "A"}, {"A": "4"}),
        ("[*]\npoll = 0 ; none\n", {"kind": "file", "path": "/c/config.ini"}, {"poll": "0"}),
    ],
)
def test_content_that_its_place_explains(text: str, address: Address, settings: dict[str, str]) -> None:
    assert parse_settings_of(State.of_text(text), address) == settings


def test_nothing_there_has_no_settings() -> None:
    assert parse_settings_of(State(None)) == {}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"{}x", b"A='open", b"models: [1]\n"])
def test_what_cannot_be_taken_apart_is_unknown(content: bytes) -> None:
    assert parse_settings_of(State(content)) is None


@given(st.binary(max_size=80))
def test_any_content_is_answered(content: bytes) -> None:
    found = parse_settings_of(State(content))
    assert found is None or all(isinstance(value, str) for value in found.values())


@given(st.lists(st.tuples(st.sampled_from(["num_ctx", "stop"]), st.text("ab", min_size=1, max_size=4)), max_size=5))
def test_no_value_of_a_parameter_is_lost(pairs: list[tuple[str, str]]) -> None:
    state = State(canonical_json({"base": "0", "parameters": [list(pair) for pair in pairs]}))
    found = parse_settings_of(state)
    assert found is not None
    assert sorted(" ".join(found.values()).split()) == sorted(value for _, value in pairs)
