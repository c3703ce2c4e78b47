"""Python's `winreg` as far as VeloLLM uses it, over a file, so that a registry outlives a killed process.

Names, signatures and errors: Python's documentation of winreg.
"""

# ruff: noqa: N802 - the names are those of winreg
from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

HKEY_CURRENT_USER = "HKEY_CURRENT_USER"
KEY_SET_VALUE = 2
KEY_READ = 0x20019
REG_SZ, REG_EXPAND_SZ, REG_BINARY = 1, 2, 3


def _store() -> Path:
    return Path(os.environ["FAKE_REGISTRY"])


class Key:
    """An open key; values are kept by name, whatever its case."""

    def __init__(self, name: str, writable: bool) -> None:
        self.name, self.writable = name, writable

    def __enter__(self) -> Key:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def values(self) -> dict[str, tuple[str, int]]:
        return {name: (value[0], value[1]) for name, value in json.loads(_store().read_text())[self.name].items()}

    def save(self, values: dict[str, tuple[str, int]]) -> None:
        if not self.writable:
            raise PermissionError(13, "Access is denied")
        whole = {**json.loads(_store().read_text()), self.name: values}
        fresh = _store().with_suffix(".new")
        fresh.write_text(json.dumps(whole, sort_keys=True))
        fresh.replace(_store())

    def find(self, name: str) -> str:
        found = next((known for known in self.values() if known.upper() == name.upper()), None)
        if found is None:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return found


def OpenKey(root: str, name: str, reserved: int = 0, access: int = KEY_READ) -> Key:
    if name not in json.loads(_store().read_text()):
        raise FileNotFoundError(2, "The system cannot find the file specified")
    return Key(name, bool(access & KEY_SET_VALUE))


def CreateKeyEx(root: str, name: str, reserved: int = 0, access: int = KEY_SET_VALUE) -> Key:
    return OpenKey(root, name, reserved, access)


def QueryValueEx(key: Key, name: str) -> tuple[object, int]:
    value, kind = key.values()[key.find(name)]
    return (b"\0" if kind == REG_BINARY else value), kind


def SetValueEx(key: Key, name: str, reserved: int, kind: int, value: str) -> None:
    values = key.values()
    with contextlib.suppress(FileNotFoundError):
        name = key.find(name)
    key.save({**values, name: (value, kind)})


def DeleteValue(key: Key, name: str) -> None:
    found = key.find(name)
    key.save({known: value for known, value in key.values().items() if known != found})


def QueryInfoKey(key: Key) -> tuple[int, int, int]:
    return 0, len(key.values()), 0


def EnumValue(key: Key, number: int) -> tuple[str, str, int]:
    name, (value, kind) = list(key.values().items())[number]
    return name, value, kind
