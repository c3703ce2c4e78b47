"""A model of the user's Ollama whose files may not be read, tried on its twin: what the server tells of it is enough.

The twin lies in a store of VeloLLM's own under the cache, which a private server runs over as it would over the user's.
One twin is kept, the latest.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from velollm.autopilot.order import Cockpit, Course
from velollm.backends.base import ModelRef
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_own import take_blob, write_manifest
from velollm.config import ensure_dir, try_lock
from velollm.errors import VeloError
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.synthetic import Blueprint, is_whole, write_model
from velollm.models.twin import draw_twin, model_of_shown
from velollm.targets.ollama_model import parameters_of_text
from velollm.units import render_bytes

MEASURED_ON_TWIN = "measured on a twin: the speed is that of the shape, the text meant nothing"


class TwinError(VeloError):
    """No trial of a twin was possible."""


@contextlib.contextmanager
def flown_on_twin(course: Course, cockpit: Cockpit) -> Iterator[Course | None]:
    """The course with a twin in its model's place, which stays until the context is left.

    None where it would have to be made, and nobody said yes to that.

    Raises:
        TwinError: the server does not tell enough of the model, the disk has no room, or another flight uses a twin.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = _board(course, cockpit, stack)
        except VeloError as error:
            raise TwinError(error.message, error.hint) from error
        yield found


def _board(course: Course, cockpit: Cockpit, stack: contextlib.ExitStack) -> Course | None:
    backend, name = course.backend, course.model.name
    assert isinstance(backend, OllamaBackend)
    shown = backend.api.show(name, verbose=True)
    blueprint = draw_twin(model_of_shown(shown, name))
    twins = ensure_dir(course.order.paths.cache / "twins")
    stack.enter_context(_locked(twins / "lock"))
    store = twins / hashlib.sha256(blueprint.mark.encode()).hexdigest()[:16]
    size = render_bytes(blueprint.file_bytes)
    if (blob := _find(store, blueprint)) is None:
        _check_room(twins, blueprint)
        offer = f"Try the plan on a twin of it, {size} of random weights in {twins}?"
        if not cockpit.ask(f"The files of {name} may not be read. {offer}"):
            return None
        blob = _make(store, blueprint, name, cockpit)
    _name(store, blob, name, shown)
    cockpit.note(
        f"Measuring with a twin of {name}, whose files may not be read: the same shape and formats, random weights. "
        f"Its speed is real, its text means nothing. It takes {size} of {twins} until another one is made."
    )
    facts = course.facts.model_copy(update={"model": model_facts(read_gguf(blob), name)})
    return replace(course, model=ModelRef(name, blob), facts=facts, twin=blob)


def _find(store: Path, blueprint: Blueprint) -> Path | None:
    """The file of that very blueprint in a store, whole; None where it is not there."""
    return next((file for file in store.glob("blobs/*") if is_whole(file, blueprint)), None)


def _check_room(twins: Path, blueprint: Blueprint) -> None:
    """Room on the disk, counting what earlier twins take: they go first. Raises `VeloError`."""
    free = shutil.disk_usage(twins).free + sum(file.stat().st_size for file in twins.rglob("*") if file.is_file())
    if free < blueprint.file_bytes:
        raise VeloError(
            f"a twin of it needs {render_bytes(blueprint.file_bytes)}, and {twins} has {render_bytes(free)} free",
            "free some disk space, or set VELOLLM_HOME to a directory on a larger disk",
        )


def _make(store: Path, blueprint: Blueprint, name: str, cockpit: Cockpit) -> Path:
    """Write the twin into its store, in the place of any other twin."""
    for other in store.parent.iterdir():
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
    ensure_dir(store)
    began_s = time.monotonic()

    def progress(done: int, total: int) -> None:
        # Reading it once more, for its digest, is the second half.
        share, spent_s = done / total / 2, time.monotonic() - began_s
        left_s = spent_s * (1 - share) / share if share and spent_s > 1 else None
        cockpit(share, f"making a twin of {name} ({render_bytes(total)})", left_s)

    file = store / "made.gguf"
    write_model(file, blueprint, progress=progress)
    return take_blob(store, file, lambda done, total: progress(done + total, total))


def _name(store: Path, blob: Path, name: str, shown: Mapping[str, Any]) -> None:
    """Give the twin the model's name in its store, with the parameters that the server shows."""
    details = shown.get("details")
    write_manifest(
        store,
        name,
        blob,
        details=details if isinstance(details, dict) else {},
        parameters=parameters_of_text(str(shown.get("parameters") or "")),
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The twins are ours alone until the context is left or we end. Raises `VeloError` where another has them."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise VeloError(
            f"cannot write {path}: {error.strerror}", "set VELOLLM_HOME to a directory that you may write to"
        ) from error
    with file:
        if not try_lock(file.fileno()):
            raise VeloError("another flight is using a twin", "wait until it has ended")
        yield
