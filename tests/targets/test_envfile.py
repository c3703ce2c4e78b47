from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.targets.envfile import parse_env, render_env

KEYS = st.sampled_from(["A", "B", "OLLAMA_NUM_PARALLEL", "_x1"])
VALUES = st.text("aB1 \t\"'\\$`#=~!*;%&|<>(){}[]-_./:,@+é☃😀\x1b\x85\u2028", max_size=12)
CHANGES = st.dictionaries(KEYS, st.one_of(st.none(), VALUES), max_size=4)
# Pieces that matter to the syntax, put together in any order, beside texts of any sort.
PIECES = st.sampled_from(
    [*"AB=#'\"\\ \t\r\n$`x", "\r\n", "export ", "A=", "B=1\n", "# note", "A='x'\n", 'A="x\ny"', "\\\n", "\ufeff", "é"]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=14).map("".join),
    st.binary(max_size=20).map(lambda content: content.decode("utf-8", "surrogateescape")),
)


def parsed(text: str) -> dict[str, str]:
    """What the text sets; texts with an open quote are another test's."""
    try:
        return parse_env(text)
    except VeloError:
        assume(False)
        raise


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=1\rB=2", {"A": "1", "B": "2"}),
        ("\ufeffA=1", {"A": "1"}),
        ("  export  A=1  \n", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=\nB= \n", {"A": "", "B": ""}),
        ("# A=1\n#B=2\n", {}),
        ("A=1 # note\nB=1#2\nC=#3\nD= # note", {"A": "1", "B": "1#2", "C": "#3", "D": ""}),
        ("A=two words  \n", {"A": "two words"}),
        ("A='a # b $x \\'\n", {"A": "a # b $x \\"}),
        ('A="a \\"b\\" \\$x \\n"\n', {"A": 'a "b" $x \\n'}),
        ("A=\"x\"'y'z\n", {"A": "xyz"}),
        ('A="--- one\nB=no\n---"\nC=3\n', {"A": "--- one\nB=no\n---", "C": "3"}),
        ("A=one\\\ntwo\nB=a\\ \\#b\n", {"A": "onetwo", "B": "a #b"}),
        ("A=http://[::1]:11434/?a=b\n", {"A": "http://[::1]:11434/?a=b"}),
        ("1A=1\nA B=2\nA.B=3\nnonsense\n=4\n", {}),
    ],
)
def test_parsing(text: str, found: dict[str, str]) -> None:
    assert parse_env(text) == found


@pytest.mark.parametrize(("text", "line"), [("A='x", 1), ('A="x\nB=1\n', 1), ('A=1\nB="\\"', 2), ("A=x'y\n\n", 1)])
def test_an_open_quote_is_told_with_its_line(text: str, line: int) -> None:
    for act in (parse_env, lambda t: render_env(t, {"C": "1"})):
        with pytest.raises(VeloError, match=f"line {line} ") as caught:
            act(text)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "changes", "result"),
    [
        ("", {"A": "1"}, "A=1\n"),
        ("# mine\r\nexport A='1'  # why\r\nB=2", {"A": "9"}, "# mine\r\nexport A=9  # why\r\nB=2"),
        ("B=2\r\n", {"A": "1", "C": "3"}, "B=2\r\nA=1\r\nC=3\r\n"),
        ("B=2", {"A": "1"}, "B=2\nA=1"),
        ("B=2\nA=1", {"A": None}, "B=2"),
        ("A=1\nB=2\nA=3\n", {"A": None}, "B=2\n"),
        ("A=1\nB=2\nA=3\n", {"A": "4"}, "A=1\nB=2\nA=4\n"),
        ("A='1'\n", {"A": "1"}, "A='1'\n"),
        ("A= # empty\n", {"A": "1"}, "A=1 # empty\n"),
        ("A=1\n", {"A": 'a "b" $c \\ `d`'}, 'A="a \\"b\\" \\$c \\\\ \\`d\\`"\n'),
        ('A="x\ny" # z\nB=1\n', {"A": None}, "B=1\n"),
        ("B=one\\", {"A": "1"}, "B=one\\\n\nA=1"),
        ("A=1\n", {"B": None}, "A=1\n"),
    ],
)
def test_rendering(text: str, changes: dict[str, str | None], result: str) -> None:
    assert render_env(text, changes) == result


@given(TEXTS, CHANGES)
def test_rendering_changes_what_it_should_and_nothing_else(text: str, changes: dict[str, str | None]) -> None:
    before = parsed(text)
    after = parse_env(render_env(text, changes))
    wanted = {key: value for key, value in (before | changes).items() if value is not None}
    assert after == wanted


@given(TEXTS, CHANGES)
def test_rendering_twice_is_rendering_once(text: str, changes: dict[str, str | None]) -> None:
    parsed(text)
    once = render_env(text, changes)
    assert render_env(once, changes) == once


@given(TEXTS)
def test_what_is_so_already_changes_no_byte(text: str) -> None:
    found: dict[str, str | None] = {
        key: value for key, value in parsed(text).items() if not re.search("[\0\r\n]", value)
    }
    assert render_env(text, {**found, "ABSENT": None}) == text


@given(TEXTS, VALUES)
def test_a_new_variable_comes_after_every_old_byte_and_goes_again(text: str, value: str) -> None:
    before = parsed(text)
    assume("NEW" not in before)
    added = render_env(text, {"NEW": value})
    assert added.startswith(text)
    removed = render_env(added, {"NEW": None})
    assert removed.rstrip("\r\n") == text.rstrip("\r\n")
    assert parse_env(removed) == before


@given(
    st.lists(st.tuples(st.sampled_from(["", "# note\n", "X=1\n", "junk\n"]), VALUES), min_size=1, max_size=4), VALUES
)
def test_changing_one_line_leaves_the_other_lines(lines: list[tuple[str, str]], value: str) -> None:
    parts = [before + render_env("", {f"K{n}": old}) for n, (before, old) in enumerate(lines)]
    changed = render_env("".join(parts), {"K0": value})
    assert changed == lines[0][0] + render_env("", {"K0": value}) + "".join(parts[1:]) or value == lines[0][1]


@pytest.mark.parametrize("changes", [{"A B": "1"}, {"": "1"}, {"1A": "1"}, {"A": "x\ny"}, {"A": "x\0"}, {"A": "x\r"}])
def test_what_cannot_be_written_is_refused(changes: dict[str, str | None]) -> None:
    with pytest.raises(VeloError) as caught:
        render_env("B=1\n", changes)
    assert caught.value.hint


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell here")
def test_a_shell_reads_the_same_values(tmp_path: Path) -> None:
    values = [
        "plain",
        "two words",
        "a#b",
        "# no comment",
        "$HOME",
        "`id`",
        '"',
        "'",
        "\\",
        "\\n",
        "~/x",
        "",
        " x ",
        "*",
        "!",
    ]
    wanted = {f"V{n}": value for n, value in enumerate(values)}
    path = tmp_path / "velollm.env"
    path.write_text(render_env("export OLD='kept here' # note\n", wanted))
    script = 'set -a; . "$0"; exec env -0'
    done = subprocess.run(
        ["sh", "-c", script, path], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert {key: seen[key] for key in wanted} == wanted
    assert seen["OLD"] == parse_env(path.read_text())["OLD"]
