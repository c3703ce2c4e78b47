"""What engines really allocated, kept by model and engine build: what later estimates are corrected by.

One small JSON file in the user's data directory, replaced as a whole; one that cannot be read counts as empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from velollm.backends.buffers import parse_buffers, parse_build
from velollm.backends.stamp import engine_stamp
from velollm.config import ensure_dir, replace_file
from velollm.errors import VeloError
from velollm.facts import ModelFacts
from velollm.models.memory import TERMS, MemoryEstimate
from velollm.units import MIB

_FILE = "memory.json"
_SCHEMA_VERSION = 2
_MOST_ENTRIES = 1000
_HEAD_BYTES = 64 * 1024
# A term that was further off than that was not of the same load.
_LEAST, _MOST = 0.25, 4.0
# The log has two digits after the point, on each of up to five lines: a smaller difference is its rounding.
_ROUNDING_BYTES = MIB // 40
_LOG = "log"


@dataclass(frozen=True)
class Kept:
    """What an engine allocated for a model, over the arithmetic, by term, or for ``total`` alone.

    ``source``: ``log``, or what told the total where there is no such log. ``stamp``: the engine, as `engine_stamp`
    tells it.
    """

    factors: Mapping[str, float]
    source: str = _LOG
    stamp: str | None = None


def identity(model: ModelFacts, path: Path | None) -> str | None:
    """What tells a model's file from others: its Ollama digest, else its size and the digest of its beginning."""
    if path is None:
        return None
    if path.name.startswith("sha256-"):
        return path.name
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    return f"{hashlib.sha256(head).hexdigest()[:32]}-{model.file_bytes}"


def uncorrected(model: ModelFacts) -> ModelFacts:
    """The model for arithmetic alone."""
    return model.model_copy(update={"memory_factors": {}}) if model.memory_factors else model


def with_kept(data: Path, model: ModelFacts, path: Path | None, backend: str) -> ModelFacts:
    """The model with what this very engine last allocated for it, where that was kept."""
    stamp = engine_stamp(backend) if (data / _FILE).exists() else None
    found = None if stamp is None else find_kept(data, model, path, stamp=stamp)
    return model if found is None else model.model_copy(update={"memory_factors": found.factors})


def keep_measured(
    data: Path,
    model: ModelFacts,
    path: Path | None,
    expected: MemoryEstimate | None,
    log: str,
    stamp: str | None = None,
) -> None:
    """Remember by how much the engine's own numbers in ``log`` differ from what was expected, term by term.

    ``expected`` is the arithmetic for the same knobs. Nothing is kept where the log names no buffers or no build. A
    directory that cannot be written is no error: what is kept only makes later estimates better.
    """
    build, measured = parse_build(log), parse_buffers(log)
    if build is None or expected is None or "compute" not in measured:
        return
    factors = {
        term: round(measured[term] / total, 6)
        for term in TERMS
        if (total := sum(getattr(device, f"{term}_bytes") for device in expected.devices))
        and measured.get(term)
        and abs(measured[term] - total) > _ROUNDING_BYTES
    }
    _keep(data, model, path, build, Kept(factors, _LOG, stamp))


def keep_total(
    data: Path, model: ModelFacts, path: Path | None, expected: MemoryEstimate | None, size_bytes: int, kept: Kept
) -> None:
    """Remember a total that something else than a log told; ``kept`` says what, and of which engine."""
    if expected is None or not expected.total_bytes or size_bytes <= 0:
        return
    factors = {"total": round(size_bytes / expected.total_bytes, 6)}
    _keep(data, model, path, kept.source.replace(" ", "_"), Kept(factors, kept.source, kept.stamp))


def _keep(data: Path, model: ModelFacts, path: Path | None, build: str, kept: Kept) -> None:
    name = identity(model, path)
    if name is None:
        return
    entries = {key: value for key, value in _read(data).items() if key != f"{name} {build}"}
    while len(entries) >= _MOST_ENTRIES:
        del entries[next(iter(entries))]
    entries[f"{name} {build}"] = kept
    with contextlib.suppress(OSError, VeloError):
        _write(data, entries)


def find_kept(
    data: Path, model: ModelFacts, path: Path | None, *, build: str | None = None, stamp: str | None = None
) -> Kept | None:
    """The latest that was kept for a model, of that engine build or that engine; None without.

    An engine whose ``stamp`` is given must have been told by the same one.
    """
    name = identity(model, path)
    if name is None:
        return None
    found = None
    for key, kept in _read(data).items():
        kept_name, _, kept_build = key.rpartition(" ")
        if kept_name == name and build in (None, kept_build) and stamp in (None, kept.stamp):
            found = kept
    return found


def _read(data: Path) -> dict[str, Kept]:
    try:
        document = json.loads((data / _FILE).read_text(encoding="utf-8"))
        entries = document["loads"] if document["schema_version"] == _SCHEMA_VERSION else {}
        return {str(key): _parse(value) for key, value in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _parse(value: Mapping[str, object]) -> Kept:
    factors, stamp = value["factors"], value["stamp"]
    if not isinstance(factors, Mapping):
        raise TypeError("factors are no mapping")
    sound = {str(term): float(factor) for term, factor in factors.items() if _LEAST <= float(factor) <= _MOST}
    return Kept(sound, str(value["source"]), None if stamp is None else str(stamp))


def _write(data: Path, entries: Mapping[str, Kept]) -> None:
    loads = {key: asdict(kept) for key, kept in entries.items()}
    replace_file(ensure_dir(data) / _FILE, json.dumps({"schema_version": _SCHEMA_VERSION, "loads": loads}, indent=1))
