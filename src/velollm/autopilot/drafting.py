"""Which drafts a race may try: those asked for, else those at hand that fit the model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from velollm.autopilot.order import Course
from velollm.backends.gguf_files import find_gguf
from velollm.backends.ollama import OllamaBackend
from velollm.draft.sources import models_at_hand
from velollm.errors import VeloError
from velollm.models.drafts import draft_choices
from velollm.tune.candidates import Draft

_MOST_AT_HAND = 2


def find_drafts(names: Sequence[str]) -> tuple[Path, ...]:
    """The files of models to guess with: paths, or names of an Ollama store.

    Raises:
        VeloError: there is none of that name, or its file cannot be read.
    """
    found: list[Path] = []
    for name in names:
        if name.endswith(".gguf"):
            found.append(find_gguf(name).path or Path(name))
            continue
        backend = OllamaBackend()
        with contextlib.closing(backend.api):
            path = backend.find_model(name).path
        if path is None:
            raise VeloError(f"the file of '{name}' cannot be read", "give the path of a GGUF file")
        found.append(path)
    return tuple(path.resolve() for path in found)


def drafts_for(course: Course, asked: Sequence[Path]) -> tuple[list[Draft], tuple[str, ...]]:
    """Drafts to race, and what to say of those that are left out.

    Raises:
        VeloError: a draft that was asked for does not fit the model.
    """
    main = course.model.path
    if main is None:
        return [], ()
    installed: list[tuple[str, Path]] = []
    if asked and isinstance(course.backend, OllamaBackend):
        installed = installed_models(course)  # they decide whether it can carry what was asked for
    elif not asked:
        with contextlib.suppress(VeloError):
            installed = installed_models(course)
    at_hand = [(str(path), path) for path in asked] or installed
    try:
        choices = draft_choices(main, at_hand, name=course.model.name)
    except VeloError:
        return [], ()  # a model without a tokenizer of its own cannot be matched with any
    if asked and choices.unfit:
        first = choices.unfit[0]
        raise VeloError(
            f"{first.name} cannot draft for {course.model.name}: {first.compatibility.reason}",
            "`velollm draft list` names those that fit",
        )
    found = [Draft(str(choice.path), choice.kind) for choice in choices.fit if choice.path is not None]
    found = found if asked else found[:_MOST_AT_HAND]
    return _carried(course, found, installed)


def installed_models(course: Course) -> list[tuple[str, Path]]:
    """Models of Ollama that are installed here. Raises `VeloError` where they cannot be listed."""
    if isinstance(course.backend, OllamaBackend):
        return models_at_hand(course.backend, os.environ, Path.home())
    backend = OllamaBackend()
    with contextlib.closing(backend.api):
        return models_at_hand(backend, os.environ, Path.home())


def _carried(
    course: Course, drafts: list[Draft], installed: Sequence[tuple[str, Path]]
) -> tuple[list[Draft], tuple[str, ...]]:
    """Those that the backend can carry: Ollama loads one beside every model of the server."""
    backend = course.backend
    if not drafts or not isinstance(backend, OllamaBackend) or backend.version is None:
        return drafts, ()
    files = {str(Path(draft.path).resolve()) for draft in drafts}
    own = (course.model.name, f"{course.model.name}:latest")
    others = [name for name, path in installed if name not in own and str(path.resolve()) not in files]
    if not others:
        return drafts, ()
    named = f"{', '.join(sorted(others)[:3])}{' …' if len(others) > 3 else ''}"
    note = (
        f"no draft was raced: Ollama would load it beside every model of the server ({named}); "
        "a server of its own can have one (`velollm run`)"
    )
    return [], (note,)
