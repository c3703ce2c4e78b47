"""What a target and its state are: one place where a setting lives."""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from velollm.errors import VeloError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Address = Mapping[str, JSON]


@dataclass(frozen=True)
class State:
    """What a target holds at one moment.

    ``content`` None: the target does not exist. ``mode`` (permission bits), ``uid`` and ``gid`` are None
    where the place has no such thing, or where the writer does not care; None matches anything.
    ``missing_dirs`` are the directories, outermost first, that did not exist when the state was read:
    writing an absent state takes them away again where they are empty. They are no part of a comparison.
    """

    content: bytes | None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    missing_dirs: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of_text(cls, text: str) -> State:
        """A state that holds this text; bytes that were no UTF-8 come back as they were."""
        return cls(text.encode("utf-8", "surrogateescape"))

    @property
    def text(self) -> str:
        """The content as text, empty where the target does not exist; line ends are left as they are."""
        return (self.content or b"").decode("utf-8", "surrogateescape")

    def matches(self, wanted: State) -> bool:
        """Whether this state is what ``wanted`` asks for: the same bytes, and mode and owner where it names them."""
        if self.content != wanted.content:
            return False
        pairs = ((self.mode, wanted.mode), (self.uid, wanted.uid), (self.gid, wanted.gid))
        return all(want is None or have == want for have, want in pairs)

    def to_json(self) -> dict[str, JSON]:
        """The state for the journal, with a checksum of its content."""
        content = self.content
        return {
            "content": None if content is None else base64.b64encode(content).decode("ascii"),
            "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "missing_dirs": list(self.missing_dirs),
        }

    @classmethod
    def from_json(cls, value: JSON) -> State:
        """The state that `to_json` told.

        Raises:
            ValueError, KeyError or TypeError: it is not as it was written, down to the last bit of the content.
        """
        if not isinstance(value, Mapping):
            raise TypeError("a state is an object")
        text = value["content"]
        content = None if text is None else base64.b64decode(str(text), validate=True)
        if content is not None and hashlib.sha256(content).hexdigest() != value["sha256"]:
            raise ValueError("the content is not the one that was written")
        numbers = [value[name] for name in ("mode", "uid", "gid")]
        mode, uid, gid = (number if isinstance(number, int) else None for number in numbers)
        missing = value["missing_dirs"]
        if isinstance(missing, str) or not isinstance(missing, Sequence):
            raise TypeError("missing_dirs is a list")
        return cls(content, mode, uid, gid, tuple(str(path) for path in missing))


ABSENT = State(None)


class Target(ABC):
    """One place where a setting lives.

    A module of this package offers its class as ``target``; nothing else registers it. `write` must be one
    step: a process that is killed in it leaves the old state or the new one, or else `read` must tell the two
    from anything a person may have made. A change that takes several steps is several targets.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def label(self) -> str:
        """The place as a person calls it."""

    @abstractmethod
    def address(self) -> Address:
        """What `from_address` needs to find this place again; ``kind`` is among it."""

    @classmethod
    @abstractmethod
    def from_address(cls, address: Address) -> Target:
        """The target of an address that `address` gave, perhaps in another process, long ago."""

    @abstractmethod
    def read(self) -> State:
        """What is there now. Raises `VeloError` where it cannot be read."""

    @abstractmethod
    def write(self, state: State) -> None:
        """Make it so; an absent state removes.

        Raises `VeloError`; then the old state is still there, or else the whole new one, never a part.
        """

    @property
    def key(self) -> str:
        """Equal for two targets exactly when they are the same place."""
        return canonical_json(self.address()).decode("ascii")

    def commands(self, state: State) -> tuple[str, ...]:
        """What writing a state runs with another user's rights, to be shown before; most places need none."""
        return ()

    def stage(self, state: State) -> None:  # noqa: B027 - most places have nothing to prepare
        """Do all of `write` that can fail for want of space or rights, without touching what is there."""

    def tidy(self, before: State) -> None:  # noqa: B027 - most places leave nothing behind
        """Take away what a staged or killed write has left beside a target that is in its state ``before``."""


def canonical_json(value: JSON) -> bytes:
    """A JSON value as bytes: keys sorted, no spaces, ASCII. The content of a target that is no file."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def target_from_address(address: Address) -> Target:
    """The target of a journalled address.

    Raises:
        VeloError: no target of that kind exists in this version, or the address is damaged.
    """
    from velollm.discover import collect

    kind = address.get("kind")
    for found in collect("velollm.targets", "target", type):
        if issubclass(found, Target) and found.kind == kind:
            return found.from_address(address)
    raise VeloError(
        f"this version knows no place of the kind '{kind}'",
        "use the version of VeloLLM that wrote the setting",
    )
