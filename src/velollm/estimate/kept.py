"""What engines really allocated, kept by model and engine build: what later estimates are corrected by.

One small JSON file in the user's data directory, replaced as a whole; one that cannot be read counts as empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from velollm.backends.buffers import TERMS, parse_buffers, parse_build
from velollm.config import ensure_dir
from velollm.errors import VeloError
from velollm.facts import ModelFacts
from velollm.models.memory import MemoryEstimate

_FILE = "memory.json"
_SCHEMA_VERSION = 1
_MOST_ENTRIES = 1000
_HEAD_BYTES = 64 * 1024
# A term that was further off than that was not of the same load.
_LEAST, _MOST = 0.25, 4.0


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


def keep_measured(data: Path, model: ModelFacts, path: Path | None, expected: MemoryEstimate | None, log: str) -> None:
    """Remember by how much the engine's own numbers in ``log`` differ from what was expected, term by term.

    Nothing is kept where the log names no buffers or no build. A directory that cannot be written is no error:
    what is kept only makes later estimates better.
    """
    name, build, measured = identity(model, path), parse_build(log), parse_buffers(log)
    if name is None or build is None or expected is None or "compute" not in measured:
        return
    factors = {
        term: round(measured.get(term, 0) / total, 6)
        for term in TERMS
        if (total := sum(getattr(device, f"{term}_bytes") for device in expected.devices)) and measured.get(term)
    }
    entries = {key: value for key, value in _read(data).items() if key != f"{name} {build}"}
    while len(entries) >= _MOST_ENTRIES:
        del entries[next(iter(entries))]
    entries[f"{name} {build}"] = factors
    with contextlib.suppress(OSError, VeloError):
        _write(data, entries)


def kept_factors(data: Path, model: ModelFacts, path: Path | None, build: str | None = None) -> Mapping[str, float]:
    """Factors by term for a model, of that engine build or, without one, the latest that was kept; empty without."""
    name = identity(model, path)
    if name is None:
        return {}
    found: Mapping[str, float] = {}
    for key, factors in _read(data).items():
        kept_name, _, kept_build = key.rpartition(" ")
        if kept_name == name and build in (None, kept_build):
            found = factors
    return found


def corrected(found: MemoryEstimate, factors: Mapping[str, float]) -> MemoryEstimate:
    """The estimate with each term multiplied by its factor."""
    if not factors:
        return found
    devices = tuple(
        replace(
            device,
            **{
                f"{term}_bytes": round(getattr(device, f"{term}_bytes") * factor)
                for term, factor in factors.items()
                if term in TERMS
            },
            basis="measured",
        )
        for device in found.devices
    )
    return replace(found, devices=devices)


def _read(data: Path) -> dict[str, dict[str, float]]:
    try:
        document = json.loads((data / _FILE).read_text(encoding="utf-8"))
        entries = document["factors"] if document["schema_version"] == _SCHEMA_VERSION else {}
        return {
            str(key): {str(term): float(factor) for term, factor in value.items() if _LEAST <= float(factor) <= _MOST}
            for key, value in entries.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _write(data: Path, entries: Mapping[str, Mapping[str, float]]) -> None:
    directory = ensure_dir(data)
    handle, name = tempfile.mkstemp(dir=directory, prefix=f".{_FILE}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"schema_version": _SCHEMA_VERSION, "factors": entries}, file, indent=1)
        Path(name).replace(directory / _FILE)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
