"""Races that were run, kept for the same machine, model, engine build and profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from velollm.bench.history import machine_key
from velollm.config import ensure_dir, replace_file
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import KnobValue
from velollm.tune.heat import Race

_SCHEMA_VERSION = 1
_FOLDER = "races"


@dataclass(frozen=True)
class Subject:
    """What a race is about: where another one of these is there, it has to be run anew.

    ``model`` tells its file from others, ``engine`` its build; ``machine`` holds processor, memory, GPUs and drivers.
    """

    machine: str
    model: str
    engine: str
    profile: str

    @property
    def key(self) -> str:
        """The name that it is kept under."""
        text = "\n".join((self.machine, self.model, self.engine, self.profile))
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Confirmed:
    """The winner against the engine's default: ``metric``'s ratio with its 95% interval, and the verdict."""

    metric: str
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class KeptRace:
    """A race as it is kept. ``knobs``: what may be set because of it; empty where the start stays.

    ``acceptance``: the share of guessed tokens that was accepted meanwhile, where it guesses. ``busy``: figures with
    a neighbour. None of ``confirmed``: it was not, so nothing may be set yet.
    """

    subject: Subject
    race: Race
    taken_at: str
    knobs: Mapping[str, KnobValue]
    confirmed: Confirmed | None = None
    acceptance: float | None = None

    @property
    def is_final(self) -> bool:
        """Was it run to its end and confirmed? Else it may be gone on with."""
        return self.confirmed is not None and not self.race.interrupted


def machine_of(facts: Facts) -> str:
    """The machine in one line, as far as it matters to a race."""
    drivers = sorted({gpu.driver_version for gpu in facts.gpus or () if gpu.driver_version})
    return ", ".join([facts.os or "unknown", machine_key(facts) or "unknown", *(f"driver {d}" for d in drivers)])


def keep_race(data: Path, subject: Subject, race: Race, confirmed: Confirmed | None, **more: object) -> KeptRace:
    """Write a race down, whole or not at all.

    Raises:
        VeloError: the file cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    kept = replace(KeptRace(subject, race, now, race.changed, confirmed), **more)  # type: ignore[arg-type]
    document = {"schema_version": _SCHEMA_VERSION, **asdict(kept)}
    path = _path(data, subject)
    try:
        ensure_dir(path.parent)
        replace_file(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise VeloError(f"cannot keep the race in {path}: {error.strerror or error}", "free some disk space") from error
    return kept


def find_race(data: Path, subject: Subject) -> KeptRace | None:
    """The race of this subject; None where there was none, or what is there cannot be read."""
    return _read(_path(data, subject))


def last_race(data: Path, model: str, profile: str) -> KeptRace | None:
    """The newest race of a model and profile on whatever machine and engine it was; to say what has changed since."""
    found = [kept for path in (data / _FOLDER).glob("*.json") if (kept := _read(path)) is not None]
    own = [kept for kept in found if (kept.subject.model, kept.subject.profile) == (model, profile)]
    return max(own, key=lambda kept: kept.taken_at, default=None)


def what_changed(kept: Subject, now: Subject) -> str | None:
    """Why a kept race no longer holds, in words; None where it does."""
    if kept.engine != now.engine:
        return f"the engine was {kept.engine} and is {now.engine}"
    return None if kept.machine == now.machine else f"the machine was {kept.machine} and is {now.machine}"


def _path(data: Path, subject: Subject) -> Path:
    return data / _FOLDER / f"{subject.key}.json"


def _read(path: Path) -> KeptRace | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("schema_version", None) != _SCHEMA_VERSION:
            return None
        return TypeAdapter(KeptRace).validate_python(document)
    except (OSError, ValueError, ValidationError, AttributeError, TypeError):
        return None
