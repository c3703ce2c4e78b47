"""Read what a standing is made of: the journal, the places, the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from velollm.backends.ollama_http import OllamaApi
from velollm.config import Paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.journal import Change, Flight, Journal
from velollm.status.contents import parse_settings_of
from velollm.status.standing import PlaceReading, Server, Standing, compare_standing
from velollm.targets.base import State, canonical_json, target_from_address
from velollm.targets.ollama_model import parse_parameters


def read_standing(paths: Paths, facts: Facts) -> Standing:
    """The standing of this machine. Raises `VeloError` where the journal cannot be read."""
    flights = Journal(paths.journal).read_flights()
    server = Server(facts, read_started_at(facts.server.pid if facts.server else None))
    engine_places = frozenset((str(paths.engine_env), str(paths.engine_settings)))
    return compare_standing(flights, read_places(flights), server, engine_places)


def read_places(flights: Iterable[Flight]) -> dict[str, PlaceReading]:
    """What is now in each place that an open flight has written, by its label."""
    changes = {c.label: c for flight in flights if flight.open for c in flight.changes if not c.settled}
    return {label: _read(change) for label, change in changes.items()}


def _read(change: Change) -> PlaceReading:
    try:
        state = target_from_address(change.address).read()
    except VeloError as error:
        return PlaceReading(None, error.message)
    changed_at, owner = _of_file(change.address.get("real"))
    return PlaceReading(state, None, changed_at, owner, _base_of(change))


def _of_file(path: object) -> tuple[datetime | None, str | None]:
    """When a file was last written, and whose it is."""
    if not isinstance(path, str):
        return None, None
    try:
        info = Path(path).stat()
    except OSError:
        return None, None
    owner: str | None = None
    with contextlib.suppress(KeyError, NotImplementedError, ImportError, OSError):
        owner = Path(path).owner()
    return datetime.fromtimestamp(info.st_mtime, UTC), owner


def _base_of(change: Change) -> dict[str, str]:
    """Parameters that the original of a changed model sets itself; empty where nobody can say."""
    url, base = change.address.get("url"), change.address.get("base")
    if not isinstance(url, str) or not isinstance(base, str):
        return {}
    api = OllamaApi(url)
    try:
        pairs = parse_parameters(str(api.show(base).get("parameters", "")))
    except VeloError:
        return {}
    finally:
        api.close()
    return parse_settings_of(State(canonical_json({"parameters": pairs}))) or {}


def read_started_at(pid: int | None) -> datetime | None:
    """When a process was started; None where it cannot be seen."""
    import psutil

    if pid is None:
        return None
    try:
        return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)
    except (psutil.Error, OSError):
        return None
