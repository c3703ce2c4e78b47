"""What a flight is asked for, what it settles before the trial, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from velollm.backends.base import Backend, ModelRef
from velollm.bench.result import BenchResult
from velollm.config import Paths, user_paths
from velollm.facts import Facts, ServerFacts
from velollm.knobs import Knobs, KnobValue
from velollm.plan import Plan
from velollm.probe.machine import probe_machine
from velollm.probe.ollama import probe_ollama
from velollm.targets.places import Places
from velollm.targets.system import System
from velollm.tune.heat import Race


def probe_own_server() -> ServerFacts | None:
    """What is known of the user's server at this moment."""
    found = probe_ollama()
    return None if found is None else found.facts


class Cockpit(Protocol):
    """How a flight talks to whoever flies it."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        """Work is ``done`` (0 to 1), ``left_s`` seconds are left."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def ask(self, question: str) -> bool:
        """A yes or no in mid-flight."""


@dataclass(frozen=True)
class Order:
    """What the user asked for. ``paths``, ``system`` and the probes are parameters, so a test can be another machine.

    ``url``: the server to work with, rather than the one that is found. ``override``: settings that the user made
    may be changed. ``beside``: an Ollama model's own name is left alone. ``hardware``: a capture or description of the
    machine to plan for, in place of this one.
    """

    model: str | None = None
    backend: str = "auto"
    profile: str = "chat"
    pins: Mapping[str, KnobValue] = field(default_factory=dict)
    budget_s: float = 180.0
    quick: bool = False
    override: bool = False
    beside: bool = False
    url: str | None = None
    hardware: Path | None = None
    paths: Paths = field(default_factory=user_paths)
    probe: Callable[[], Facts] = probe_machine
    probe_server: Callable[[], ServerFacts | None] = probe_own_server
    system: System = field(default_factory=System)


@dataclass(frozen=True)
class Course:
    """Everything that is settled before the trial. ``current``: what is set now; None where nothing is.

    ``kept``: settings of the user's own that the plan leaves alone. ``twin``: the made file that is tried in the place
    of the model's own, which may not be read.
    """

    order: Order
    backend: Backend
    model: ModelRef
    facts: Facts
    plan: Plan
    current: Knobs | None
    places: Places
    kept: Knobs = field(default_factory=dict)
    twin: Path | None = None


@dataclass(frozen=True)
class Pending:
    """A setting that is not in effect yet, the command that brings it, and why VeloLLM did not run that itself."""

    target: str
    key: str
    after: str | None
    activate: str
    why: str = ""


@dataclass(frozen=True)
class Restart:
    """A restart of the user's server that was done, and what it took.

    ``cut``: answers that it ended before their time; None where none could be seen.
    """

    steps: tuple[str, ...]
    cut: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a flight ended. ``plan`` holds what was kept; ``trial`` is what measured it, ``confirmed`` what it did
    on the user's own server afterwards. ``before``: what that server did before it, where the trial was of a twin.
    ``advised``: the plan is worth applying. ``race``: the one that was run for it.
    """

    course: Course
    plan: Plan
    trial: BenchResult | None = None
    before: BenchResult | None = None
    confirmed: BenchResult | None = None
    applied: bool = False
    applied_reason: str = ""
    advised: bool = False
    pending: tuple[Pending, ...] = ()
    flight: str | None = None
    restart: Restart | None = None
    race: Race | None = None
