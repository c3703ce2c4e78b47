"""Collect the values of one section of the facts, each with the place where it was read."""

from __future__ import annotations

from typing import Any


class Fields:
    """Values by name; the first reader that knows a value wins, so call the better reader first."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def put(self, name: str, value: Any, place: str) -> None:
        """Keep ``value`` unless it is None or an earlier reader already gave one."""
        if value is not None and name not in self.values:
            self.values[name] = value
            self.places[name] = place

    def get(self, name: str) -> Any:
        """The value kept for ``name``, else None."""
        return self.values.get(name)

    def place(self, name: str) -> str:
        """Where the value of ``name`` was read; an empty text where there is none."""
        return self.places.get(name, "")

    def sources(self, section: str) -> dict[str, str]:
        """Places by path of the fact (``cpu.usable_cores``)."""
        return {f"{section}.{name}": place for name, place in self.places.items()}

    def __bool__(self) -> bool:
        return bool(self.values)
