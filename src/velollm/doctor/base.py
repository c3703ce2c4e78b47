"""What a check and a finding are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from velollm.facts import Facts

Severity = Literal["critical", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")


@dataclass(frozen=True)
class Evidence:
    """One thing that was read: where, and what it said."""

    where: str
    value: str


@dataclass(frozen=True)
class EnvironmentMend:
    """Variables of the server's environment, with the value to give to each; None takes a variable away."""

    variables: Mapping[str, str | None]


@dataclass(frozen=True)
class ParameterMend:
    """Parameters of an installed model, under Ollama's names, with the value to give to each; None takes one away."""

    model: str
    parameters: Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class RestartMend:
    """The server has only to be started again: what it lacks is written already, or was lost while it ran."""


Mend = EnvironmentMend | ParameterMend | RestartMend


@dataclass(frozen=True)
class Finding:
    """Something that a check found. ``fix`` is the command (or the one step) that mends it.

    A ``note`` is merely different, not wrong, and changes no exit code. ``why`` says in one line why it matters.
    ``mend`` is what `velollm doctor --fix` may do about it; None: only a person can.
    """

    check: str
    severity: Severity
    title: str
    evidence: tuple[Evidence, ...]
    fix: str
    why: str = ""
    mend: Mend | None = None


@dataclass(frozen=True)
class Check:
    """A pure function from facts to findings; unknown facts give none.

    ``severity`` is the worst that it can report, ``fixable`` whether its fix is a command to run.
    The docstring of ``run`` is the check's documentation.
    """

    name: str
    title: str
    severity: Severity
    fixable: bool
    run: Callable[[Facts], Iterable[Finding]]

    @property
    def doc(self) -> str:
        """The check's documentation."""
        return inspect.cleandoc(self.run.__doc__ or "")


def evidence(facts: Facts, path: str, value: object, fallback: str = "") -> Evidence:
    """Evidence for the fact at ``path`` (``memory.swap_total_bytes``), with the place where it was read."""
    return Evidence(facts.sources.get(path) or fallback or path, str(value))
