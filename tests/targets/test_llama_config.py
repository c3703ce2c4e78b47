from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.targets.outside import Programs, ground, system
from velollm.apply import Write, apply_writes, undo_flight
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.journal import FlightMeta, Journal
from velollm.targets.inifile import parse_config
from velollm.targets.llama_config import LlamaConfig, find_config
from velollm.targets.sudofile import SudoFileTarget

ME = pwd.getpwuid(os.geteuid()).pw_name
SERVER = ServerFacts(version="0.33.0", user=ME, managed="systemd")


def test_the_home_of_the_servers_process(tmp_path: Path) -> None:
    environ = tmp_path / "proc" / "7" / "environ"
    environ.parent.mkdir(parents=True)
    for content, place in (("HOME=/h\0A=1\0", "/h/.config"), ("HOME=/h\0XDG_CONFIG_HOME=/x\0", "/x")):
        environ.write_text(content)
        found = find_config(ground(tmp_path, SERVER, system(tmp_path), 7))
        assert found.label == f"{place}/llama.cpp/config.ini"


def test_the_home_of_the_servers_user(tmp_path: Path) -> None:
    found = find_config(ground(tmp_path, SERVER, system(tmp_path), 7))
    assert found.label == f"{pwd.getpwuid(os.geteuid()).pw_dir}/.config/llama.cpp/config.ini"
    with pytest.raises(VeloError, match="home"):
        find_config(ground(tmp_path, ServerFacts(user="nobody-there"), system(tmp_path), 7))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "0.32.14"}, "reads no config.ini"),
        ({"remote": True}, "not on this"),
        ({"managed": "container"}, "not on"),
    ],
)
def test_engines_without_one(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    with pytest.raises(VeloError, match=why):
        find_config(ground(tmp_path, SERVER.model_copy(update=changes), system(tmp_path)))
    newer = SERVER.model_copy(update={"version": "0.32.15"})
    assert find_config(ground(tmp_path, newer, system(tmp_path))).label


def test_options_go_in_and_out_again(tmp_path: Path) -> None:
    path = tmp_path / "llama.cpp" / "config.ini"
    place, journal = LlamaConfig(path, None, system(tmp_path)), Journal(tmp_path / "journal")
    assert place.writes({"poll": None}) == []
    writes = [Write(t, after, before) for t, before, after in place.writes({"poll": "0"})]
    apply_writes(writes, journal, FlightMeta("0.1.0", "ollama", "m", ""))
    assert place.read() == {"poll": "0"}
    assert path.stat().st_mode & 0o777 == 0o644
    undo_flight(journal)
    assert not path.parent.exists()


def test_a_service_users_file_is_written_as_that_user(tmp_path: Path) -> None:
    programs = Programs({"sudo -n true": ""})
    place = LlamaConfig(tmp_path / "c.ini", "ollama", system(tmp_path, programs))
    ((target, _, after),) = place.writes({"prio": "2"})
    assert isinstance(target, SudoFileTarget)
    assert all(line.startswith("sudo -u ollama ") for line in target.commands(after))
    assert parse_config(after.text) == {"prio": "2"}
    assert place.refusal() is None
    programs.answers.clear()
    assert place.refusal() == f"only ollama may write {tmp_path / 'c.ini'}"
    assert place.by_hand({"prio": "2"})[-1].endswith(f"sudo -u ollama tee -a {tmp_path / 'c.ini'}")
