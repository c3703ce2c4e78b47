from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.crash import count_calls, each_kill, in_child, kill_at, snapshot, was_killed, watched_calls
from velollm.backends.base import Setting
from velollm.errors import VeloError
from velollm.targets.enginefile import parse_engine_settings
from velollm.targets.envfile import parse_env
from velollm.targets.export import render_export, write_export

SETTINGS = (
    Setting("environment", "OLLAMA_NUM_PARALLEL", "4", "slots"),
    Setting("environment", "OLLAMA_KEEP_ALIVE", "30m", "keep_alive_s"),
    Setting("model", "num_ctx", "8192", "context_tokens"),
    Setting("model", "num_thread", "2", "threads"),
    Setting("engine", "threads", "2", "threads"),
    Setting("engine", "flash_attention", "on", "flash_attention"),
)
FOUR = {"velollm.env", "Modelfile", "ollama.service.d/velollm.conf", "compose.override.yaml"}
VALUES = st.text("aB1 \"'\\$`#=~!*;%&|<>(){}[]-_./:,@+é☃😀\x85\u2028", max_size=12)


def environment(value: str) -> list[Setting]:
    return [Setting("environment", "OLLAMA_X", value, "slots")]


def parse_unit(text: str) -> dict[str, str]:
    """The environment of a drop-in, by the rules of systemd.syntax(7) and systemd.unit(5)."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        match = re.fullmatch(r'Environment="((?:[^"\\]|\\["\\])*)"', line)
        if match is not None:
            body = re.sub(r"\\(.)", r"\1", match.group(1))
            assert "%" not in body.replace("%%", "")
            key, _, value = body.replace("%%", "%").partition("=")
            found[key] = value
    return found


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands of a Modelfile; quotes as Ollama's parser takes them off."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.removeprefix("PARAMETER ").partition(" ")
        value = value.strip()
        for quote in ('"""', '"'):
            if value.startswith(quote):
                assert value.endswith(quote)
                assert len(value) >= 2 * len(quote)
                value = value[len(quote) : -len(quote)]
                break
        found.append((name, value))
    return found


def test_each_setting_lands_in_its_files() -> None:
    files = render_export(SETTINGS, "llama3:8b")
    assert set(files) == FOUR | {"engine.yaml"}
    values = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": "30m"}
    assert parse_env(files["velollm.env"]) == values
    assert parse_unit(files["ollama.service.d/velollm.conf"]) == values
    assert yaml.safe_load(files["compose.override.yaml"]) == {"services": {"ollama": {"environment": values}}}
    assert parse_modelfile(files["Modelfile"]) == [("FROM", "llama3:8b"), ("num_ctx", "8192"), ("num_thread", "2")]
    assert parse_engine_settings(files["engine.yaml"]) == {"llama3:8b": {"threads": 2, "flash_attention": "on"}}


def test_a_plan_without_settings_gives_whole_files() -> None:
    files = render_export([], "m")
    assert set(files) == FOUR
    assert yaml.safe_load(files["compose.override.yaml"]) == {"services": {"ollama": {"environment": {}}}}
    assert files["Modelfile"].endswith("FROM m\n")


@given(VALUES)
def test_every_value_comes_back_from_every_file(value: str) -> None:
    files = render_export([*environment(value), Setting("model", "stop", value, "slots")], "m")
    assert parse_env(files["velollm.env"]) == {"OLLAMA_X": value}
    assert parse_unit(files["ollama.service.d/velollm.conf"]) == {"OLLAMA_X": value}
    compose = yaml.safe_load(files["compose.override.yaml"])["services"]["ollama"]["environment"]["OLLAMA_X"]
    assert compose.replace("$$", "").count("$") == 0
    assert compose.replace("$$", "$") == value


@pytest.mark.parametrize("value", ["a b", '"', '"x"', 'x"', '"""', " a ", "", "a#b", "User:"])
def test_modelfile_values_come_back(value: str) -> None:
    files = render_export([Setting("model", "stop", value, "slots")], "/models/a b.gguf")
    assert parse_modelfile(files["Modelfile"]) == [("FROM", "/models/a b.gguf"), ("stop", value)]


@pytest.mark.parametrize("value", ["a\nUser=root", "a\rb", "a\0b", "\x1b[2J"])
def test_a_value_that_would_break_out_of_its_line_is_refused(value: str) -> None:
    for settings, model in ((environment(value), "m"), ([], value)):
        with pytest.raises(VeloError) as caught:
            render_export(settings, model)
        assert caught.value.hint


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    (tmp_path / "ollama.service").write_text("[Service]\nExecStart=/bin/true\n")
    hard = 'a "b" \\ %h $x ;#'
    write_export(tmp_path, render_export([*SETTINGS, *environment(hard)], "m"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "ollama.service")]
    env = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert str(tmp_path) not in done.stderr, done.stderr
    broken = (tmp_path / "ollama.service.d" / "velollm.conf").read_text().replace('\\"b', '"b')
    (tmp_path / "ollama.service.d" / "velollm.conf").write_text(broken)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "velollm.conf" in done.stderr, "systemd-analyze does not read the drop-in, so the check above shows nothing"


def test_the_set_is_written_and_may_be_written_again(tmp_path: Path) -> None:
    for settings in (SETTINGS, SETTINGS[:3]):
        files = render_export(settings, "m")
        paths = write_export(tmp_path / "out", files)
        assert [path.read_text() for path in paths] == list(files.values())
        assert [str(path.relative_to(tmp_path / "out")) for path in paths] == list(files)


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM mine\n")
    before = snapshot(tmp_path)
    with pytest.raises(VeloError, match="Modelfile") as caught:
        write_export(tmp_path, render_export(SETTINGS, "m"))
    assert "--export" in caught.value.hint
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("again", [False, True], ids=["new", "over an older set"])
def test_a_failure_at_any_point_leaves_the_directory_as_it_was(tmp_path: Path, again: bool) -> None:
    root = tmp_path / "out"
    older, files = render_export(SETTINGS[:2], "older"), render_export(SETTINGS, "m")

    def lay() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if again:
            write_export(root / "deep" / "set", older)

    lay()
    names = count_calls(lambda: write_export(root / "deep" / "set", files))
    failed = 0
    for failing in range(1, len(names) + 1):
        lay()
        before = snapshot(root)

        def hook(count: int, name: str, args: tuple[Any, ...], failing: int = failing) -> None:
            if count == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            with watched_calls(hook):
                write_export(root / "deep" / "set", files)
        except VeloError as error:
            failed += 1
            assert "space" in error.hint
            assert snapshot(root) == before
    assert failed >= len(files) * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs to fork")
@pytest.mark.parametrize("again", [False, True], ids=["new", "over an older set"])
def test_a_kill_leaves_whole_files_and_the_next_export_finishes(tmp_path: Path, again: bool) -> None:
    root, place = tmp_path / "out", tmp_path / "out" / "deep" / "set"
    older, files = render_export(SETTINGS[:2], "older"), render_export(SETTINGS, "m")

    def lay() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if again:
            write_export(place, older)

    lay()
    names = count_calls(lambda: write_export(place, files))
    write_export(place, files)
    wanted = snapshot(root)
    for number, torn in list(each_kill(names))[::3]:
        lay()
        assert was_killed(in_child(lambda: write_export(place, files), kill_at(number, torn)))
        if again:
            texts = {name: (place / name).read_text() for name in older}
            assert all(texts[name] in (older[name], files[name]) for name in texts)
        elif place.exists():
            assert snapshot(root) == wanted
        write_export(place, files)
        assert snapshot(root) == wanted
