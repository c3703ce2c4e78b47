from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tests.fake_winreg
from tests.targets.outside import Programs, ground, system
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.activation import activation_from_address
from velollm.targets.base import target_from_address
from velollm.targets.environment import choose_place
from velollm.targets.windows_environment import TrayActivation, WindowsPlace, WindowsVariableTarget

BINARY = r"C:\Users\me\AppData\Local\Programs\Ollama\ollama.exe"
APP = ServerFacts(managed="app", binary=BINARY)
TRAY = r"C:\Users\me\AppData\Local\Programs\Ollama\ollama app.exe"


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "registry.json"
    values = {"Path": ["%X%;C:\\b", 2], "Ollama_Keep_Alive": ["5m", 1], "BLOB": ["", 3]}
    path.write_text(json.dumps({"Environment": values}))
    monkeypatch.setitem(sys.modules, "winreg", tests.fake_winreg)
    monkeypatch.setenv("FAKE_REGISTRY", str(path))
    return path


def values(registry: Path) -> dict[str, list[object]]:
    found = json.loads(registry.read_text())["Environment"]
    assert isinstance(found, dict)
    return found


def test_values_keep_their_type_and_their_names_case(registry: Path) -> None:
    before = values(registry)
    for name in ("PATH", "OLLAMA_KEEP_ALIVE", "NEW"):
        target = WindowsVariableTarget(name)
        old = target.read()
        ((_, _, after),) = WindowsPlace.writes(place_of(registry), {name: "x"})
        target.write(after)
        assert target.read() == after
        target.write(old)
    assert values(registry) == before
    assert WindowsVariableTarget("Path").key == WindowsVariableTarget("PATH").key


def place_of(registry: Path) -> WindowsPlace:
    place = choose_place(ground(registry.parent, APP, system(registry.parent, platform="win32")))
    assert isinstance(place, WindowsPlace)
    return place


def test_the_users_own_variables_are_seen_and_are_not_ours(registry: Path) -> None:
    place = place_of(registry)
    assert place.read() == {"PATH": "%X%;C:\\b", "OLLAMA_KEEP_ALIVE": "5m"}
    assert place.ours() == {}
    assert place.writes({"OLLAMA_KEEP_ALIVE": "5m", "GONE": None}) == []


def test_what_the_account_does_not_set_cannot_be_taken_from_it(registry: Path) -> None:
    app = APP.model_copy(update={"environment": {"Llama_Arg_Threads": "many", "OLLAMA_KEEP_ALIVE": "5m"}})
    place = choose_place(ground(registry.parent, app, system(registry.parent, platform="win32")))
    with pytest.raises(VeloError, match="LLAMA_ARG_THREADS: not set in the environment variables of your Windows"):
        place.writes({"LLAMA_ARG_THREADS": None})
    ((_, _, after),) = place.writes({"OLLAMA_KEEP_ALIVE": None})
    assert after.content is None


def test_what_is_no_text_is_left_alone() -> None:
    with pytest.raises(VeloError, match="no text"):
        WindowsVariableTarget("BLOB").read()


def test_the_tray_app_starts_with_what_the_registry_holds(registry: Path, tmp_path: Path) -> None:
    start = f"cmd /c start  {TRAY}"
    programs = Programs({"taskkill /IM ollama app.exe /T /F": "", start: ""})
    machine = system(tmp_path, programs, platform="win32")
    place = choose_place(ground(tmp_path, APP, machine))
    writes = place.writes({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": None})
    for target, _, after in writes:
        target.write(after)
    assert place.activation.commands() == ('taskkill /IM "ollama app.exe" /T /F', f'start "" "{TRAY}"')
    place.activation.run()
    assert programs.asked == ["taskkill /IM ollama app.exe /T /F", start]
    given = programs.environs[-1]
    assert given is not None
    assert given["OLLAMA_NUM_PARALLEL"] == "4"
    assert "OLLAMA_KEEP_ALIVE" not in {name.upper() for name in given}
    assert place.by_hand({"A": "x y", "B": None})[:2] == ('setx A "x y"', "reg delete HKCU\\Environment /v B /f")


def test_a_server_of_a_terminal_is_restarted_by_its_user(tmp_path: Path) -> None:
    server = ServerFacts(managed="by hand", binary=BINARY)
    place = choose_place(ground(tmp_path, server, system(tmp_path, platform="win32")))
    assert isinstance(place, WindowsPlace)
    assert place.activation.lacking() is not None
    with pytest.raises(VeloError):
        place.activation.run()


def test_they_come_back_from_the_journal(registry: Path) -> None:
    place = place_of(registry)
    ((target, _, _),) = place.writes({"A": "1"})
    assert target_from_address(target.address()).key == target.key
    activation = activation_from_address(json.loads(json.dumps(place.activation.address())))
    assert isinstance(activation, TrayActivation)
    assert activation.commands() == place.activation.commands()


def test_another_machine_has_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "winreg")
    with pytest.raises(VeloError, match="no Windows registry"):
        WindowsVariableTarget("A").read()
