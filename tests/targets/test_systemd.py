"""A server that systemd keeps: its drop-in, by root, by sudo, and of a user's own systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.targets.outside import Programs, ground, system
from velollm.apply import Write, apply_writes, undo_flight
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.journal import FlightMeta, Journal
from velollm.targets.activation import activation_from_address
from velollm.targets.base import target_from_address
from velollm.targets.environment import choose_place
from velollm.targets.sudofile import SudoFileTarget
from velollm.targets.systemd_system import SystemUnitPlace
from velollm.targets.systemd_user import UserUnitPlace
from velollm.targets.unitfile import parse_dropin

META = FlightMeta("0.1.0", "ollama", "m", "")
SERVER = ServerFacts(managed="systemd", unit="ollama.service", user_unit=False)
CHANGES = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_ORIGINS": 'a b "c" 50%'}
FILE = "systemd/system/ollama.service.d/velollm.conf"


def test_root_writes_the_drop_in_and_restarts(tmp_path: Path) -> None:
    programs = Programs({"systemctl daemon-reload": "", "systemctl restart ollama.service": ""})
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, programs, as_root=True)))
    assert isinstance(place, SystemUnitPlace)
    assert place.refusal() is None
    assert place.label == str(tmp_path / "etc" / FILE)
    journal = Journal(tmp_path / "journal")
    apply_writes([Write(t, after, before) for t, before, after in place.writes(CHANGES)], journal, META)
    path = tmp_path / "etc" / FILE
    assert parse_dropin(path.read_text()) == CHANGES == place.read() == place.ours()
    assert path.stat().st_mode & 0o777 == 0o644
    place.activation.run()
    assert programs.asked == ["systemctl daemon-reload", "systemctl restart ollama.service"]
    undo_flight(journal)
    assert not (tmp_path / "etc").exists()


def test_another_flight_keeps_what_the_first_set(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, as_root=True)))
    for changes in (CHANGES, {"OLLAMA_NUM_PARALLEL": None, "OLLAMA_KEEP_ALIVE": "1h"}):
        for target, _, after in place.writes(changes):
            target.write(after)
    assert place.read() == {"OLLAMA_ORIGINS": CHANGES["OLLAMA_ORIGINS"], "OLLAMA_KEEP_ALIVE": "1h"}
    assert place.writes({"OLLAMA_KEEP_ALIVE": "1h"}) == []
    ((target, _, after),) = place.writes({"OLLAMA_ORIGINS": None, "OLLAMA_KEEP_ALIVE": None})
    target.write(after)
    assert not (tmp_path / "etc" / FILE).exists()


def test_an_edited_drop_in_is_not_ours_any_more(tmp_path: Path) -> None:
    path = tmp_path / "etc" / FILE
    path.parent.mkdir(parents=True)
    path.write_text("[Service]\nNice=5\nEnvironment=A=1\n")
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, as_root=True)))
    for act in (place.read, lambda: place.writes(CHANGES)):
        with pytest.raises(VeloError, match="not written by VeloLLM"):
            act()


def test_an_environment_file_that_wins_is_named(tmp_path: Path) -> None:
    server = SERVER.model_copy(update={"configured": {"/etc/default/ollama": {"OLLAMA_NUM_PARALLEL": "2"}}})
    place = choose_place(ground(tmp_path, server, system(tmp_path, as_root=True)))
    with pytest.raises(VeloError, match="/etc/default/ollama, which wins"):
        place.writes(CHANGES)
    assert place.writes({"OLLAMA_NUM_PARALLEL": "2"}) != []


@pytest.mark.parametrize("where", ["systemctl show ollama.service", "/etc/default/ollama"])
def test_what_the_unit_itself_sets_is_taken_away_by_name_and_not_set_to_nothing(tmp_path: Path, where: str) -> None:
    path = tmp_path / "etc" / FILE
    server = SERVER.model_copy(update={"configured": {where: {"LLAMA_ARG_THREADS": "many"}}})
    machine = system(tmp_path, as_root=True)
    place = choose_place(ground(tmp_path, server, machine))
    ((target, _, after),) = place.writes({"LLAMA_ARG_THREADS": None, "LLAMA_ARG_BATCH": None, "A": "1"})
    target.write(after)
    assert path.read_text().endswith('[Service]\nEnvironment="A=1"\nUnsetEnvironment=LLAMA_ARG_THREADS\n')
    assert place.read() == {"A": "1"}
    assert " '[Service]' UnsetEnvironment=LLAMA_ARG_THREADS > " in place.by_hand({"LLAMA_ARG_THREADS": None})[1]
    # From then on systemd tells of it no more; it stays away until somebody wants a value, or nothing is left.
    place = choose_place(ground(tmp_path, SERVER, machine))
    assert place.writes({"LLAMA_ARG_THREADS": None}) == []
    ((_, _, after),) = place.writes({"A": None})
    assert after.text.endswith("[Service]\nUnsetEnvironment=LLAMA_ARG_THREADS\n")
    ((_, _, after),) = place.writes({"LLAMA_ARG_THREADS": "4"})
    assert after.text.endswith('[Service]\nEnvironment="A=1"\nEnvironment="LLAMA_ARG_THREADS=4"\n')


def test_what_only_our_drop_in_sets_just_goes(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, as_root=True)))
    ((target, _, after),) = place.writes({"OLLAMA_NUM_PARALLEL": "4"})
    target.write(after)
    known = {"configured": {"systemctl show ollama.service": {"OLLAMA_NUM_PARALLEL": "4"}}}
    place = choose_place(ground(tmp_path, SERVER.model_copy(update=known), system(tmp_path, as_root=True)))
    ((_, _, after),) = place.writes({"OLLAMA_NUM_PARALLEL": None})
    assert after.content is None


def test_sudo_is_for_the_write_and_the_restart_and_is_shown(tmp_path: Path) -> None:
    programs = Programs({"sudo -n true": ""})
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, programs)))
    assert place.refusal() is None
    ((target, _, after),) = place.writes({"A": "1"})
    assert isinstance(target, SudoFileTarget)
    directory = tmp_path / "etc" / "systemd" / "system" / "ollama.service.d"
    shown = target.commands(after)
    assert shown[0] == f"sudo mkdir -p {directory}"
    assert f"sudo mv -fT {directory}/" in shown[-1]
    assert all(line.startswith("sudo ") for line in shown)
    assert place.activation.commands() == ("sudo systemctl daemon-reload", "sudo systemctl restart ollama.service")
    # What is shown is what is run, but for the word that forbids a password prompt where nobody could answer it.
    programs.answers = {line.split("  #")[0].replace("sudo", "sudo -n", 1): "" for line in shown}
    programs.asked.clear()
    target.stage(after)
    target.write(after)
    assert [line.replace("sudo -n", "sudo") for line in programs.asked] == [line.split("  #")[0] for line in shown]


def test_a_refused_sudo_leaves_all_as_it_was(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, Programs())))
    assert place.refusal() == f"only root may write {tmp_path / 'etc' / FILE} and restart ollama.service"
    writes = [Write(t, after, before) for t, before, after in place.writes({"A": "1"})]
    with pytest.raises(VeloError, match="failed: sudo: refused") as caught:
        apply_writes(writes, Journal(tmp_path / "journal"), META)
    assert "by hand" in caught.value.hint
    assert not (tmp_path / "etc").exists()


def test_without_sudo_the_commands_are_left_to_a_person(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, lacks=("sudo",))))
    assert place.refusal() is not None
    assert place.activation.lacking() == place.refusal()
    directory = tmp_path / "etc" / "systemd" / "system" / "ollama.service.d"
    assert place.by_hand({"A": "x y", "B": None}) == (
        f"sudo mkdir -p {directory}",
        rf"""printf '%s\n' '[Service]' 'Environment="A=x y"' | sudo tee {directory}/velollm.conf""",
        "sudo systemctl daemon-reload",
        "sudo systemctl restart ollama.service",
    )


def test_a_password_can_be_typed_at_a_terminal(tmp_path: Path) -> None:
    programs = Programs({"sudo systemctl daemon-reload": "", "sudo systemctl restart ollama.service": ""})
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path, programs, terminal=True)))
    assert place.refusal() is None
    assert programs.asked == []
    place.activation.run()
    assert programs.asked == ["sudo systemctl daemon-reload", "sudo systemctl restart ollama.service"]


def test_a_users_own_unit(tmp_path: Path) -> None:
    server = SERVER.model_copy(update={"user_unit": True})
    programs = Programs({"systemctl --user daemon-reload": "", "systemctl --user restart ollama.service": ""})
    place = choose_place(ground(tmp_path, server, system(tmp_path, programs)))
    assert isinstance(place, UserUnitPlace)
    assert place.label == str(tmp_path / "home/.config/systemd/user/ollama.service.d/velollm.conf")
    assert place.refusal() is None
    place.activation.run()
    assert len(programs.asked) == 2
    assert "sudo" not in " ".join(place.by_hand(CHANGES))


def test_targets_and_activations_come_back_from_the_journal(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, SERVER, system(tmp_path)))
    ((target, _, _),) = place.writes({"A": "1"})
    again = target_from_address(target.address())
    assert (type(again), again.key, again.label) == (SudoFileTarget, target.key, target.label)
    activation = activation_from_address(place.activation.address())
    assert activation.commands() == place.activation.commands()
    assert activation.lacking() == place.activation.lacking()
