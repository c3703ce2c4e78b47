"""From the journal, the places and the server to one standing: what was set, what is there, what runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from velollm.facts import Facts, LoadedModelFacts, ServerFacts
from velollm.journal import Change, Flight
from velollm.probe.serverrun import parse_flags
from velollm.status.contents import parse_settings_of
from velollm.targets.base import Address, State

PlaceState = Literal["as written", "changed", "put back", "removed", "unreadable"]
Verdict = Literal["runs", "waits", "differs", "changed", "idle", "unknown"]
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
# Parameters of a model that its engine's command line shows, by the value of `ServerFacts` of the same sense.
_FLAG_OF_PARAMETER = {"num_thread": "threads", "num_batch": "batch", "num_gpu": "gpu_layers"}


@dataclass(frozen=True)
class PlaceReading:
    """What is in a place now. ``state`` None: it could not be read, ``problem`` says why.

    ``changed_at`` and ``owner`` are of the file, where it is one. ``base``: what the original of a model that we
    changed sets itself.
    """

    state: State | None
    problem: str | None = None
    changed_at: datetime | None = None
    owner: str | None = None
    base: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """One place that flights have written, by its newest flight: is it still as that flight left it?"""

    label: str
    flight: str
    state: PlaceState
    detail: str | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of VeloLLM's: what the newest flight wants there (None: gone), what is there, and what runs.

    ``where`` says where ``running`` was read.
    """

    place: str
    key: str
    flight: str
    wanted: str | None
    there: str | None
    running: str | None
    where: str | None
    verdict: Verdict
    detail: str | None = None


@dataclass(frozen=True)
class Standing:
    """All of it. ``flights`` are those of which something may still be in place, oldest first."""

    flights: tuple[Flight, ...]
    places: tuple[Place, ...]
    settings: tuple[Setting, ...]
    facts: Facts

    @property
    def drift(self) -> bool:
        """Is something set that does not run, or not set any more?"""
        moved = any(place.state not in ("as written", "unreadable") for place in self.places)
        return moved or any(setting.verdict in ("waits", "differs", "changed") for setting in self.settings)


@dataclass(frozen=True)
class Server:
    """What the comparison needs of the server: its facts, and when its process started (None: unknown)."""

    facts: Facts
    started_at: datetime | None = None

    @property
    def found(self) -> ServerFacts | None:
        return self.facts.server


def compare_standing(
    flights: Sequence[Flight], readings: Mapping[str, PlaceReading], server: Server, engine_places: frozenset[str]
) -> Standing:
    """Put together the standing; ``readings`` are by the places' labels.

    ``engine_places`` are our own engine's files, which `velollm run MODEL` reads at its start: no server runs by them.
    """
    open_ = tuple(flight for flight in flights if flight.open)
    newest: dict[str, tuple[Flight, Change]] = {}
    wanted: dict[tuple[str, str], tuple[str, str | None]] = {}
    for flight in open_:
        for change in flight.changes:
            if change.settled or change.address.get("kind") == "ollama-copy":
                continue
            newest[change.label] = (flight, change)
            base = readings[change.label].base if change.label in readings else {}
            wanted.update(_wanted(change, flight.id, base))
    places = tuple(_place(flight, change, readings.get(label)) for label, (flight, change) in newest.items())
    settings = tuple(
        _setting(newest[label][1], key, flight, value, readings.get(label), server, engine_places)
        for (label, key), (flight, value) in wanted.items()
    )
    return Standing(open_, places, settings, server.facts)


def _wanted(change: Change, flight: str, base: Mapping[str, str]) -> dict[tuple[str, str], tuple[str, str | None]]:
    """(place, key) and what this change makes of it, for every key that it changes."""
    before, after = (parse_settings_of(state, change.address) for state in (change.before, change.after))
    if after is None or before is None:
        return {}
    before = before or dict(base)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {(change.label, key): (flight, after.get(key)) for key in keys}


def _place(flight: Flight, change: Change, reading: PlaceReading | None) -> Place:
    if reading is None or reading.state is None:
        return Place(change.label, flight.id, "unreadable", reading.problem if reading else None)
    now = reading.state
    if now.content == change.after.content:
        return Place(change.label, flight.id, "as written")
    state: PlaceState = "changed"
    if now.content is None:
        state = "removed"
    elif now.content == change.before.content:
        state = "put back"
    return Place(change.label, flight.id, state, _who(reading))


def _who(reading: PlaceReading) -> str:
    """Who changed a place, as far as a file tells."""
    words = "by somebody else"
    if reading.owner is not None:
        words += f"; the file belongs to {reading.owner}"
    if reading.changed_at is not None:
        words += f", last written {_time(reading.changed_at)}"
    return words


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _setting(
    change: Change,
    key: str,
    flight: str,
    wanted: str | None,
    reading: PlaceReading | None,
    server: Server,
    engine_places: frozenset[str],
) -> Setting:
    label, there = change.label, _there(key, reading, change.address)
    if reading is not None and reading.state is not None and there != wanted:
        running, where = _running(label, key, server, engine_places)
        return Setting(label, key, flight, wanted, there, running, where, "changed", _who(reading))
    running, where = _running(label, key, server, engine_places)
    verdict, detail = _judge(label, key, wanted, running, where, reading, server, engine_places)
    return Setting(label, key, flight, wanted, there, running, where, verdict, detail)


def _there(key: str, reading: PlaceReading | None, address: Address) -> str | None:
    if reading is None or reading.state is None:
        return None
    found = parse_settings_of(reading.state, address)
    return None if found is None else found.get(key)


def _running(label: str, key: str, server: Server, engine_places: frozenset[str]) -> tuple[str | None, str | None]:
    """What the server runs with, and where that was read; (None, None) where nobody can say."""
    found = server.found
    if label in engine_places or found is None or not found.reachable:
        return None, None
    sources = server.facts.sources
    if not _VARIABLE.fullmatch(key):
        return _running_parameter(label, key, server)
    if found.environment is not None:
        return found.environment.get(key), sources.get("server.environment", "environment of the server's process")
    if found.logged_environment is not None and key in found.logged_environment:
        return found.logged_environment[key], sources.get("server.logged_environment", "the server's log")
    return None, None


def _running_parameter(label: str, key: str, server: Server) -> tuple[str | None, str | None]:
    model = loaded_model(label, server)
    if model is None:
        return None, None
    if key == "num_ctx" and model.context_tokens is not None:
        return str(model.context_tokens), server.facts.sources.get("server.loaded", "/api/ps")
    if key in _FLAG_OF_PARAMETER and model.argv is not None:
        value = parse_flags(model.argv).get(_FLAG_OF_PARAMETER[key])
        return (None, None) if value is None else (str(value), "command line of the engine's process")
    return None, None


def loaded_model(label: str, server: Server) -> LoadedModelFacts | None:
    """The model that a place of parameters is for, where it is in memory."""
    name = label.removeprefix("Ollama model ")
    full = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
    loaded = server.found.loaded if server.found is not None else None
    return next((model for model in loaded or () if model.name == full), None)


def _judge(
    label: str,
    key: str,
    wanted: str | None,
    running: str | None,
    where: str | None,
    reading: PlaceReading | None,
    server: Server,
    engine_places: frozenset[str],
) -> tuple[Verdict, str | None]:
    """What the comparison comes to, and why, where that needs words."""
    if label in engine_places:
        return "unknown", "used by `velollm run` when it starts the engine"
    if server.found is None or not server.found.reachable:
        return "unknown", "no server answers"
    if where is None:
        if label.endswith(".ini"):
            return "unknown", "the engine reads it with each load, and does not tell of it"
        if not _VARIABLE.fullmatch(key):
            idle = loaded_model(label, server) is None
            return ("idle", "the model is not in memory") if idle else ("unknown", "nothing tells it of a loaded model")
        return "unknown", "the environment of the server's process may not be read"
    if (running or "") == (wanted or ""):
        return "runs", None
    if wanted is None and not _VARIABLE.fullmatch(key):
        return "unknown", "left to the engine, which does not say whether a value is its own"
    if not _VARIABLE.fullmatch(key):
        return "differs", "loaded before the change, or by a request with options of its own"
    changed_at = reading.changed_at if reading else None
    if server.started_at is not None and changed_at is not None and server.started_at > changed_at:
        return "differs", f"the server was started {_time(server.started_at)}, after that, with something else"
    since = f" since {_time(server.started_at)}" if server.started_at is not None else ""
    return "waits", f"never activated: the server runs{since} without it; it has to be started again"
