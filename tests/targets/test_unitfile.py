from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.targets.unitfile import (
    parse_dropin,
    parse_show_environment,
    parse_unset,
    quote_assignment,
    render_dropin,
    split_words,
)

NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, [*range(32), 127])))
VALUES = st.text(CHARACTERS, max_size=12) | st.text(" %$\"'\\#;=`%%n", max_size=12)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_what_is_written_is_read_again(environment: dict[str, str]) -> None:
    assert parse_dropin(render_dropin(environment)) == environment


@given(st.dictionaries(NAMES, VALUES | st.none(), max_size=4))
def test_what_is_taken_away_is_read_again(environment: dict[str, str | None]) -> None:
    text = render_dropin(environment)
    assert {**parse_dropin(text), **dict.fromkeys(parse_unset(text))} == environment


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("UnsetEnvironment=A B", ("A", "B")),
        ('UnsetEnvironment="A" C=1', ("A",)),
        ("UnsetEnvironment=A\nUnsetEnvironment=\nUnsetEnvironment=B B", ("B",)),
        ("Environment=A=", ()),
    ],
)
def test_variables_that_are_taken_away_by_name(lines: str, names: tuple[str, ...]) -> None:
    assert parse_unset(f"[Service]\n{lines}\n[Unit]\nUnsetEnvironment=U\n") == names


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    assert all("=" not in name for name in parse_dropin(f"[Service]\n{text}"))
    assert all("=" not in name for name in parse_unset(f"[Service]\n{text}"))
    split_words(text)
    parse_show_environment(text)


def shown(environment: dict[str, str]) -> str:
    """A property as `systemctl show` prints it (systemd v252, `shell_maybe_quote`)."""
    return " ".join(_maybe_quoted(f"{name}={value}") for name, value in environment.items())


def _maybe_quoted(text: str) -> str:
    special = "\"\\`$*?['()<>|&;! \t\n\r"
    if not any(c in special or ord(c) < 32 or ord(c) == 127 for c in text):
        return text
    letters = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(f"\\{c}" if c in '"\\`$' else letters.get(c, c) for c in text) + '"'


@given(st.dictionaries(NAMES, st.text(CHARACTERS, max_size=12) | st.text(" \t\n$\"'\\!*", max_size=8), max_size=4))
def test_what_systemctl_shows_is_read(environment: dict[str, str]) -> None:
    assert parse_show_environment(shown(environment)) == environment


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("A=1 B=2", {"A": "1", "B": "2"}),
        ('PATH=/usr/bin "ORIGINS=a b" N=', {"PATH": "/usr/bin", "ORIGINS": "a b", "N": ""}),
        (r'"A=\"x\" \\ \$HOME \001"', {"A": '"x" \\ $HOME \x01'}),
        ("no-assignment 1A=x", {}),
    ],
)
def test_shown_properties(text: str, found: dict[str, str]) -> None:
    assert parse_show_environment(text) == found


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("Environment=A=1 B=2", {"A": "1", "B": "2"}),
        ('Environment="A=1 2" \'B=3 "4"\'', {"A": "1 2", "B": '3 "4"'}),
        ('Environment=A="1 2"', {"A": "1 2"}),
        ("Environment=A=50%% B=%h", {"A": "50%", "B": "%h"}),
        ("Environment=A=$HOME", {"A": "$HOME"}),
        (r'Environment="A=a\"b\\c\td\x41\101\u00e9"', {"A": 'a"b\\c\tdAA\xe9'}),
        ("Environment=A=1\nEnvironment=A=2", {"A": "2"}),
        ("Environment=A=1\nEnvironment=\nEnvironment=B=2", {"B": "2"}),
        ("Environment=A=1 \\\n  B=2", {"A": "1", "B": "2"}),
        ("Environment=A=1 \\\n# between\n  B=2", {"A": "1", "B": "2"}),
        ("# Environment=A=1\n ; Environment=B=1", {}),
        ("  Environment = A=1  ", {"A": "1"}),
        (r"Environment=A=1 B=\q C=3", {"A": "1"}),
        ('Environment=A=1 "B=2', {"A": "1"}),
        ("EnvironmentFile=/x", {}),
        ("[Unit]\nEnvironment=A=1", {}),
    ],
)
def test_unit_files_are_read_as_systemd_reads_them(lines: str, found: dict[str, str]) -> None:
    assert parse_dropin(f"[Service]\n{lines}\n") == found
    assert parse_dropin(f"[Service]\r\n{lines}\r\n".replace("\r\n", "\n")) == found


@pytest.mark.parametrize(("name", "value"), [("1A", "x"), ("A B", "x"), ("A", "x\ny"), ("A", "\x7f"), ("A", "\ud800")])
def test_what_systemd_would_drop_is_refused(name: str, value: str) -> None:
    with pytest.raises(VeloError) as caught:
        quote_assignment(name, value)
    assert caught.value.hint


UNIT = "[Service]\nExecStart=/bin/true\n"
ODD = {"A": "plain", "B": "a b", "C": "50% off %n", "D": "$HOME ${X}", "E": "\"q\" 'q'", "F": "back\\slash\\", "G": ""}


def verify(directory: Path, dropin: str) -> str:
    """What `systemd-analyze verify` says of a unit with this drop-in."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here")
    (directory / "ollama.service").write_text(UNIT)
    (directory / "ollama.service.d").mkdir()
    (directory / "ollama.service.d" / "velollm.conf").write_text(dropin)
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{directory}:", "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        [tool, "verify", "--man=no", str(directory / "ollama.service")], env=environ, capture_output=True, text=True
    )
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "velollm.conf" in line)


def test_systemd_itself_accepts_a_drop_in(tmp_path: Path) -> None:
    assert verify(tmp_path, render_dropin({**ODD, "GONE": None})) == ""


def test_systemd_would_complain_of_a_wrong_one(tmp_path: Path) -> None:
    assert "velollm.conf" in verify(tmp_path, '[Service]\nEnvironment="A=\\q"\nNonsense=1\n')
