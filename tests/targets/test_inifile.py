from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.targets.inifile import parse_config, render_config

CHANGES = {"poll": "0", "prio": "2", "gone": None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("[*]\npoll = 50 ; half\nprio=2\n", {"poll": "50", "prio": "2"}),
        ("poll = 1\n[*]\npoll = 2\n", {"poll": "1"}),
        ("[*]\npoll = 2\n[default]\npoll = 3\n", {"poll": "3"}),
        ("[*]\npoll = 2\n[*]\nprio = 1\n", {"prio": "1"}),
        ("[other]\npoll = 2\n", {}),
        ("[*] # all\r\npoll = a b \r\n\r\n  ; note\r\n", {"poll": "a b"}),
        ("[*]\npoll =", {"poll": ""}),
    ],
)
def test_what_holds_for_every_model(text: str, found: dict[str, str]) -> None:
    assert parse_config(text) == found


@pytest.mark.parametrize("text", [" poll = 1\n", "[*\n", "poll\n", "[*]\n=1\n", "1x = 2\n"])
def test_a_file_that_the_engine_cannot_read_is_told(text: str) -> None:
    with pytest.raises(VeloError, match="line") as caught:
        parse_config(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[*]\npoll = 0\nprio = 2\n"),
        ("# mine\n", "# mine\n[*]\npoll = 0\nprio = 2\n"),
        ("[*]\r\npoll = 50 ; half\r\ngone = 1\r\n", "[*]\r\nprio = 2\r\npoll = 0 ; half\r\n"),
        ("[*]", "[*]\npoll = 0\nprio = 2\n"),
        ("[*]\npoll=0\nprio =2", "[*]\npoll=0\nprio =2"),
        ("[*]\npoll = 9\n[*]\nprio = 9\n", "[*]\npoll = 9\n[*]\npoll = 0\nprio = 2\n"),
        ("[m]\npoll = 9", "[m]\npoll = 9\n[*]\npoll = 0\nprio = 2\n"),
        ("[*]\npoll =\n", "[*]\nprio = 2\npoll =0\n"),
    ],
)
def test_single_options_are_changed_and_the_rest_stays(before: str, after: str) -> None:
    result = render_config(before, CHANGES)
    assert result.splitlines() == after.splitlines()
    assert sorted(result) == sorted(after)
    assert parse_config(result) == {"poll": "0", "prio": "2"}
    assert render_config(result, CHANGES) == result


def test_an_option_that_default_decides_is_left_to_its_user() -> None:
    with pytest.raises(VeloError, match="default"):
        render_config("poll = 1\n", {"poll": "0"})


@pytest.mark.parametrize(
    ("key", "value"), [("--poll", "1"), ("Poll", "1"), ("poll", "1 ; x"), ("poll", " 1"), ("poll", "1\n2"), ("", "1")]
)
def test_what_cannot_stand_in_the_file_is_refused(key: str, value: str) -> None:
    with pytest.raises(VeloError) as caught:
        render_config("", {key: value})
    assert caught.value.hint


LINES = st.sampled_from(
    ["[*]", "[default]", "[m:Q4]", "poll = 1", "prio=2 # x", "threads-batch = 3", "; note", "", "  # note", "[*] ; y"]
)


@given(
    st.lists(LINES, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.dictionaries(st.sampled_from(["poll", "prio", "cpu-mask"]), st.sampled_from(["0", "a b", ""]) | st.none()),
)
def test_only_what_was_asked_for_changes(lines: list[str], newline: str, changes: dict[str, str | None]) -> None:
    text = newline.join(lines)
    try:
        result = render_config(text, changes)
    except VeloError as error:
        assert "default" in error.message
        return
    wanted = {key: value for key, value in changes.items() if value is not None}
    kept = {key: value for key, value in parse_config(text).items() if key not in changes}
    assert parse_config(result) == {**kept, **wanted}
    for line in lines:
        if line and not any(line.startswith(key) for key in changes):
            assert line in result.splitlines()


@given(st.text("[]*=;#ab \r\n\t", max_size=40))
def test_no_text_breaks_it(text: str) -> None:
    try:
        result = render_config(text, {"zeta": "1"})
    except VeloError:
        return
    assert parse_config(result)["zeta"] == "1"
