"""What a rule is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from velollm.facts import Facts
from velollm.knobs import Basis, Knobs, KnobValue, Wish
from velollm.rules.placement import Placement


@dataclass(frozen=True)
class Advice:
    """Values for the rule's knobs, one reason for them, and what the reason rests on.

    ``candidates`` are other values worth measuring against these, likelier first; they are named, not chosen.
    ``said``: knobs that have a reason and basis of their own. ``left``: knobs on which there is no advice, and why.
    ``placement``: what the model takes on each device, and ``nearest`` what else would fit, of the rule that knows it.
    """

    values: Mapping[str, KnobValue]
    reason: str
    basis: Basis = "arithmetic"
    candidates: tuple[Mapping[str, KnobValue], ...] = ()
    said: Mapping[str, tuple[str, Basis]] = field(default_factory=dict)
    left: Mapping[str, Skip] = field(default_factory=dict)
    placement: Placement | None = None
    nearest: tuple[Nearest, ...] = ()

    def why(self, name: str) -> tuple[str, Basis]:
        """Reason and basis of one knob's value."""
        return self.said.get(name, (self.reason, self.basis))


@dataclass(frozen=True)
class Skip:
    """No advice, and why: what is as it should be, or which fact was missing."""

    reason: str
    lacked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Nearest:
    """Something near to what was asked for that would fit.

    ``knobs``: what to set for it; ``quantization``: another file of the model, of about ``size_bytes``;
    ``changes_answer``: whether it can change what the model says.
    """

    text: str
    knobs: Mapping[str, KnobValue] = field(default_factory=dict)
    quantization: str | None = None
    size_bytes: int | None = None
    changes_answer: bool = False


Decide = Callable[[Facts, Knobs, Wish], Advice | Skip]


@dataclass(frozen=True)
class Rule:
    """A pure function that owns ``sets``; it runs after the rules that own ``needs``.

    The docstring of ``decide`` is the rule's documentation.
    """

    id: str
    sets: tuple[str, ...]
    decide: Decide
    needs: tuple[str, ...] = ()
    title: str = field(default="")

    @property
    def doc(self) -> str:
        """The rule's documentation."""
        return inspect.cleandoc(self.decide.__doc__ or "")


def pinned(wish: Wish, *names: str) -> Advice | None:
    """The user's own values, where each of ``names`` was pinned with ``--set``; else None."""
    if not all(name in wish.pins for name in names):
        return None
    return Advice({name: wish.pins[name] for name in names}, "you asked for it with --set", "user")


def integer(knobs: Knobs, name: str) -> int | None:
    """A knob's value where it is a whole number; None where it is unset or something else."""
    value = knobs.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def word(knobs: Knobs, name: str, unset: str) -> str:
    """A knob's value where it is a word; ``unset`` where it is unset or something else."""
    value = knobs.get(name)
    return value if isinstance(value, str) else unset
