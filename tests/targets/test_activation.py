from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.targets.outside import Programs, system
from velollm.errors import VeloError
from velollm.targets.activation import (
    Activation,
    CommandActivation,
    ManualActivation,
    RunnerActivation,
    activation_from_address,
)


def again(activation: Activation) -> Activation:
    return activation_from_address(json.loads(json.dumps(activation.address())))


def test_commands_run_in_order_until_one_fails(tmp_path: Path) -> None:
    programs = Programs({"one": "", "sudo -n two x": ""})
    activation = CommandActivation((("one",), ("sudo", "two", "x"), ("three",), ("four",)), system(tmp_path, programs))
    with pytest.raises(VeloError, match="`three` failed: three: refused") as caught:
        activation.run()
    assert caught.value.hint
    assert programs.asked == ["one", "sudo -n two x", "three"]
    assert again(activation).commands() == activation.commands() == ("one", "sudo two x", "three", "four")
    assert again(activation).lacking() is None


def test_root_needs_no_sudo(tmp_path: Path) -> None:
    programs = Programs({"two": ""})
    CommandActivation((("sudo", "two"),), system(tmp_path, programs, as_root=True)).run()
    assert programs.asked == ["two"]


def test_what_only_a_person_can_do_is_not_run() -> None:
    activation = again(ManualActivation(("quit it", "start it"), "it is theirs"))
    assert (activation.commands(), activation.lacking()) == (("quit it", "start it"), "it is theirs")
    with pytest.raises(VeloError, match="theirs"):
        activation.run()


def test_no_velollm_run_is_at_work(tmp_path: Path) -> None:
    activation = RunnerActivation(tmp_path / "run.json", 7)
    assert activation.lacking() == "the server was not started by `velollm run`"
    assert activation.commands() == ("velollm run -- ollama serve",)
    with pytest.raises(VeloError, match="no `velollm run`"):
        again(activation).run()


@pytest.mark.parametrize(
    "address", [{}, {"kind": "unknown"}, {"kind": "commands", "commands": "rm"}, {"kind": "by-hand"}]
)
def test_a_damaged_address_is_told(address: dict[str, str]) -> None:
    with pytest.raises(VeloError, match="cannot be read from the journal"):
        activation_from_address(address)
