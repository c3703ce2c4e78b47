"""The environment of an Ollama server as a place for settings, whoever keeps that server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from velollm.config import Paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.targets.activation import Activation
from velollm.targets.places import Write
from velollm.targets.system import System

Changes = Mapping[str, str | None]
"""Variables to set; None takes one away."""


@dataclass(frozen=True)
class Ground:
    """Where a place is looked for: the facts, VeloLLM's own paths, the machine, and the server's process if known."""

    facts: Facts
    paths: Paths
    system: System
    pid: int | None = None


class EnvironmentPlace(ABC):
    """One place that gives a server its environment, and how a change there takes effect.

    A module of this package offers its class as ``place``; nothing else registers it. Where several can be used, the
    one with the lowest ``rank`` is. ``owned``: all that the place sets was written by VeloLLM; elsewhere the journal
    tells what of it was.
    """

    rank: ClassVar[int] = 0
    owned: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def available(cls, ground: Ground) -> EnvironmentPlace | None:
        """This place, where the server is one that it is for; else None."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The place as a person calls it."""

    @property
    @abstractmethod
    def activation(self) -> Activation:
        """How a change here takes effect."""

    @abstractmethod
    def read(self) -> dict[str, str]:
        """Variables that it sets now. Raises `VeloError` where it cannot be read."""

    def ours(self) -> dict[str, str]:
        """What of `read` is in a file of our own; all of it, unless a place says otherwise."""
        return self.read() if self.owned else {}

    def check(self, changes: Changes) -> None:
        """Raises `VeloError` where another place decides one of these variables, whatever is written here."""
        return

    @abstractmethod
    def writes(self, changes: Changes) -> list[Write]:
        """What these changes mean for targets. Raises `VeloError` where they cannot be made there, as `check` does."""

    def refusal(self) -> str | None:
        """Why we cannot write there ourselves; None where we can."""
        return None

    @abstractmethod
    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        """What a person would type to make these changes and bring them to effect."""


def refuse_foreign(names: Iterable[str], running: Mapping[str, str] | None, label: str) -> None:
    """Nothing here takes away what is not set here: an empty value would be one to the engine.

    ``names``: variables to be taken away that the place does not set; ``running``: those of the server.

    Raises:
        VeloError: the server has one of them all the same.
    """
    if foreign := [name for name in names if name in (running or {})]:
        raise VeloError(
            f"{', '.join(foreign)}: not set in the {label}, and so it cannot be taken away there",
            "take it out where it is set, then restart the server",
        )


def choose_place(ground: Ground) -> EnvironmentPlace:
    """The place that gives this server its environment."""
    from velollm.discover import collect

    kinds = [kind for kind in collect("velollm.targets", "place", type) if issubclass(kind, EnvironmentPlace)]
    made = (kind.available(ground) for kind in sorted(kinds, key=lambda kind: kind.rank))
    return next(place for place in made if place is not None)
