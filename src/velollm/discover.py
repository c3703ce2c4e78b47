"""Load every module of a package, so that adding a rule or a check is adding one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def load_modules(package: str) -> Iterator[ModuleType]:
    """Import and yield the modules directly inside ``package``, in name order, without ``base``."""
    parent = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(parent.__path__))
    for name in names:
        if name != "base":
            yield importlib.import_module(f"{package}.{name}")


def collect(package: str, attribute: str, kind: type[T]) -> tuple[T, ...]:
    """The ``attribute`` of every module of ``package`` that has one of type ``kind``.

    A tuple or list of such things counts as each of them.
    """
    found: list[T] = []
    for module in load_modules(package):
        value = getattr(module, attribute, None)
        values = value if isinstance(value, (tuple, list)) else [value]
        found.extend(item for item in values if isinstance(item, kind))
    return tuple(found)
