"""How a change of a server's settings takes effect: by a restart, which somebody or something does.

It is journalled with the flight, so that undo can bring the old settings back to life too.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from velollm.backends.ollama_run import RunClient, find_runner, reach_runner
from velollm.errors import VeloError
from velollm.targets.base import JSON, Address
from velollm.targets.system import System, run_or_raise


class Activation(ABC):
    """One way to restart a server."""

    kind: ClassVar[str]

    @abstractmethod
    def lacking(self) -> str | None:
        """Why it cannot be done from here; None where it can."""

    @abstractmethod
    def commands(self) -> tuple[str, ...]:
        """What a person would type for it, line by line."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What `run` does, line by line, to be shown before."""
        return self.commands()

    @abstractmethod
    def run(self) -> None:
        """Do it. Raises `VeloError` where the server does not come back."""

    @abstractmethod
    def address(self) -> Address:
        """What `activation_from_address` needs to make it again; ``kind`` is among it."""

    @classmethod
    @abstractmethod
    def from_address(cls, address: Address, system: System) -> Activation:
        """The activation of an address that `address` gave, to be done on this machine."""


class CommandActivation(Activation):
    """Commands of the machine's own, run in order, such as `systemctl restart`; those that begin with `sudo` as root.

    ``lacks``: why they cannot be run from here.
    """

    kind = "commands"

    def __init__(
        self, commands: Sequence[Sequence[str]], system: System | None = None, lacks: str | None = None
    ) -> None:
        self._commands = tuple(tuple(words) for words in commands)
        self._system, self._lacks = system or System(), lacks

    def lacking(self) -> str | None:
        return self._lacks

    def commands(self) -> tuple[str, ...]:
        return tuple(shlex.join(words) for words in self._commands)

    def run(self) -> None:
        for words in self._commands:
            run_or_raise(self._system.run, self._system.as_root(words[1:]) if words[0] == "sudo" else words)

    def address(self) -> Address:
        return {"kind": self.kind, "commands": [list(words) for words in self._commands], "lacks": self._lacks}

    @classmethod
    def from_address(cls, address: Address, system: System) -> CommandActivation:
        commands, lacks = address.get("commands"), address.get("lacks")
        if isinstance(commands, str) or not isinstance(commands, Sequence):
            raise _damaged()
        words = [_words(command) for command in commands]
        return cls(words, system, None if lacks is None else str(lacks))


class RunnerActivation(Activation):
    """The `velollm run` that is the parent of the server with process id ``pid``; with ``whichever`` of any server."""

    kind = "velollm-run"

    def __init__(self, state_file: Path, pid: int | None = None, *, whichever: bool = False) -> None:
        self._state_file, self._pid, self._whichever = state_file, pid, whichever

    def _client(self) -> RunClient | None:
        return reach_runner(self._state_file) if self._whichever else find_runner(self._state_file, self._pid)

    def lacking(self) -> str | None:
        return None if self._client() is not None else "the server was not started by `velollm run`"

    def commands(self) -> tuple[str, ...]:
        return ("velollm run -- ollama serve",)

    @property
    def steps(self) -> tuple[str, ...]:
        return ("a restart of your server, by the `velollm run` that it runs under",)

    def run(self) -> None:
        client = self._client()
        if client is None:
            raise VeloError("no `velollm run` is at work", f"start the server with it: {self.commands()[0]}")
        client.restart()

    def address(self) -> Address:
        return {"kind": self.kind, "state_file": str(self._state_file)}

    @classmethod
    def from_address(cls, address: Address, system: System) -> RunnerActivation:  # noqa: ARG003
        # The server has another process id after each restart.
        return cls(Path(str(address.get("state_file"))), whichever=True)


@dataclass(frozen=True)
class ManualActivation(Activation):
    """What only a person can do, and why."""

    what: tuple[str, ...]
    why: str
    kind: ClassVar[str] = "by-hand"

    def lacking(self) -> str | None:
        return self.why

    def commands(self) -> tuple[str, ...]:
        return self.what

    def run(self) -> None:
        raise VeloError(self.why, "; ".join(self.what))

    def address(self) -> Address:
        return {"kind": self.kind, "what": list(self.what), "why": self.why}

    @classmethod
    def from_address(cls, address: Address, system: System) -> ManualActivation:  # noqa: ARG003
        return cls(_words(address.get("what")), str(address.get("why")))


activation = (CommandActivation, RunnerActivation, ManualActivation)


def activation_from_address(address: Address, system: System | None = None) -> Activation:
    """The activation of a journalled address.

    Raises:
        VeloError: no activation of that kind exists in this version, or the address is damaged.
    """
    from velollm.discover import collect

    kind = address.get("kind")
    for found in collect("velollm.targets", "activation", type):
        if issubclass(found, Activation) and found.kind == kind:
            return found.from_address(address, system or System())
    raise _damaged()


def _words(value: JSON) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise _damaged()
    return tuple(str(word) for word in value)


def _damaged() -> VeloError:
    return VeloError("how the server is restarted cannot be read from the journal", "restart it by hand")
