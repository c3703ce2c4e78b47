"""Windows: the user's environment variables in the registry, and the tray app that starts the server with them.

Where they are and the message that tells programs of a change: Microsoft Learn, "Environment Variables" and
"WM_SETTINGCHANGE message". That the app takes them: Ollama v0.33.0-rc2 docs/faq.mdx:113-127.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import PureWindowsPath
from typing import Any

from velollm.errors import VeloError
from velollm.targets.activation import Activation, ManualActivation
from velollm.targets.base import ABSENT, Address, State, Target, canonical_json
from velollm.targets.environment import Changes, EnvironmentPlace, Ground, refuse_foreign
from velollm.targets.places import Write
from velollm.targets.system import System, run_or_raise

_KEY = "Environment"
_REG_SZ, _REG_EXPAND_SZ = 1, 2
_TEXT_KINDS = (_REG_SZ, _REG_EXPAND_SZ)
_APP = "ollama app.exe"


def _registry() -> Any:
    """Python's `winreg`; a module of Windows only."""
    try:
        return importlib.import_module("winreg")
    except ImportError as error:
        raise VeloError("there is no Windows registry here", "undo it on the machine where it was written") from error


class WindowsVariableTarget(Target):
    """One value of ``HKEY_CURRENT_USER\\Environment``. Its state is the value's type and text."""

    kind = "windows-variable"

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def label(self) -> str:
        return f"user environment variable {self._name}"

    @property
    def key(self) -> str:
        return f"{self.kind}:{self._name.upper()}"  # names of Windows know no case

    def address(self) -> Address:
        return {"kind": self.kind, "name": self._name}

    @classmethod
    def from_address(cls, address: Address) -> WindowsVariableTarget:
        return cls(str(address["name"]))

    def read(self) -> State:
        winreg = _registry()
        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, _KEY) as key:
                value, kind = winreg.QueryValueEx(key, self._name)
        except FileNotFoundError:
            return ABSENT
        except OSError as error:
            raise _registry_error("read", self.label, error) from error
        if kind not in _TEXT_KINDS or not isinstance(value, str):
            raise VeloError(
                f"the {self.label} is no text", "set it in the system's settings, under Environment Variables"
            )
        return State(canonical_json({"type": kind, "value": value}))

    def write(self, state: State) -> None:
        winreg = _registry()
        try:
            with winreg.CreateKeyEx(winreg.HKEY_CURRENT_USER, _KEY, 0, winreg.KEY_SET_VALUE) as key:
                if state.content is None:
                    winreg.DeleteValue(key, self._name)
                else:
                    wanted = json.loads(state.content)
                    winreg.SetValueEx(key, self._name, 0, wanted["type"], wanted["value"])
        except FileNotFoundError:
            return  # it was to be removed, and is not there
        except OSError as error:
            raise _registry_error("write", self.label, error) from error
        _tell_programs()


target = WindowsVariableTarget


def _registry_error(doing: str, label: str, error: OSError) -> VeloError:
    return VeloError(f"cannot {doing} the {label}: {error.strerror or error}", "run it as the user whose it is")


def _tell_programs() -> None:
    """Let running programs (the Explorer, which starts others) read the environment anew."""
    if sys.platform == "win32":
        import ctypes

        broadcast, setting_change, abort_if_hung, wait_ms = 0xFFFF, 0x1A, 0x2, 5000
        send = ctypes.windll.user32.SendMessageTimeoutW
        send(broadcast, setting_change, 0, _KEY, abort_if_hung, wait_ms, ctypes.byref(ctypes.c_ulong()))


def read_user_environment() -> dict[str, str]:
    """Every text variable of the user. Raises `VeloError` where the registry cannot be read."""
    winreg, found = _registry(), dict[str, str]()
    try:
        with winreg.OpenKey(winreg.HKEY_CURRENT_USER, _KEY) as key:
            for number in range(winreg.QueryInfoKey(key)[1]):
                name, value, kind = winreg.EnumValue(key, number)
                if kind in _TEXT_KINDS and isinstance(value, str):
                    found[name] = value
    except FileNotFoundError:
        return found
    except OSError as error:
        raise _registry_error("read", "user's environment", error) from error
    return found


class TrayActivation(Activation):
    """The tray app ended and started again, by us: so it gets what the registry holds now, whatever we were given."""

    kind = "windows-app"

    def __init__(self, app: str, names: tuple[str, ...] = (), system: System | None = None) -> None:
        self._app, self._names, self._system = app, names, system or System()

    def lacking(self) -> str | None:
        return None if self._system.platform == "win32" else "this is not the machine that it runs on"

    def commands(self) -> tuple[str, ...]:
        return (f'taskkill /IM "{_APP}" /T /F', f'start "" "{self._app}"')

    def run(self) -> None:
        run_or_raise(self._system.run, ["taskkill", "/IM", _APP, "/T", "/F"])
        inherited = {k: v for k, v in self._system.environ.items() if k.upper() not in self._names}
        environ = {**inherited, **read_user_environment()}
        environ["PATH"] = self._system.environ.get("PATH", os.defpath)  # the user's part alone is no whole PATH
        done = self._system.run(["cmd", "/c", "start", "", self._app], None, environ)
        if done.status:
            raise VeloError(f"{self._app} could not be started", "start Ollama from the start menu")

    def address(self) -> Address:
        return {"kind": self.kind, "app": self._app, "names": list(self._names)}

    @classmethod
    def from_address(cls, address: Address, system: System) -> TrayActivation:
        names = address.get("names")
        return cls(str(address.get("app")), tuple(map(str, names)) if isinstance(names, list) else (), system)


activation = TrayActivation


class WindowsPlace(EnvironmentPlace):
    """The user's variables. Others than ours are among them, so the journal tells which are."""

    owned = False

    def __init__(self, ground: Ground) -> None:
        server = ground.facts.server
        self._system = ground.system
        self._app = server is not None and server.managed == "app" and server.binary
        self._names: tuple[str, ...] = ()
        self._running = {n.upper(): v for n, v in ((server.environment if server else None) or {}).items()}

    @classmethod
    def available(cls, ground: Ground) -> WindowsPlace | None:
        server = ground.facts.server
        if ground.system.platform != "win32" or server is None or server.managed not in ("app", "by hand", None):
            return None
        return None if server.remote else cls(ground)

    @property
    def label(self) -> str:
        return "environment variables of your Windows account"

    @property
    def activation(self) -> Activation:
        if not self._app:
            return ManualActivation(("ollama serve",), "end the server, then start it from a new terminal")
        return TrayActivation(str(PureWindowsPath(self._app).with_name(_APP)), self._names, self._system)

    def read(self) -> dict[str, str]:
        return {name.upper(): value for name, value in read_user_environment().items()}

    def check(self, changes: Changes) -> None:
        here = self.read()
        gone = [name.upper() for name, value in changes.items() if value is None]
        refuse_foreign((name for name in gone if name not in here), self._running, self.label)

    def writes(self, changes: Changes) -> list[Write]:
        self.check(changes)
        self._names = tuple(name.upper() for name in changes)
        found: list[Write] = []
        for name, value in changes.items():
            if "\0" in (value or ""):
                raise VeloError(f"the value of {name} has a control character in it", "give a plain value")
            variable = WindowsVariableTarget(name)
            before = variable.read()
            after = ABSENT if value is None else State(canonical_json({"type": _REG_SZ, "value": value}))
            if before != after:
                found.append((variable, before, after))
        return found

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        lines = [
            f"reg delete HKCU\\Environment /v {name} /f" if value is None else f'setx {name} "{value}"'
            for name, value in changes.items()
        ]
        return (*lines, *self.activation.commands())


place = WindowsPlace
