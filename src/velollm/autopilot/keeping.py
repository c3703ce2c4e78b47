"""What of a comparison goes into the history, and what a person is told where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from velollm.autopilot.made import STAND_IN
from velollm.autopilot.order import Cockpit, Course
from velollm.backends.buffers import parse_build
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_find import is_local
from velollm.backends.openai import OpenAiBackend
from velollm.bench.history import Record, append_record, make_record
from velollm.bench.result import BenchResult
from velollm.errors import VeloError
from velollm.estimate.kept import identity
from velollm.knobs import Knobs


def keep_result(
    course: Course,
    result: BenchResult,
    knobs: Mapping[str, Knobs],
    cockpit: Cockpit,
    *,
    log: Path | None,
    courses: Mapping[str, Course] | None = None,
) -> Record:
    """Add a result to the history. A full disk is told, and costs nobody the figures that were just taken.

    ``log``: of one of its engines; None where they ran as they were. ``courses``: by arm, where they differ.
    """
    of_arm = dict.fromkeys(knobs, course) if courses is None else courses
    digests = {arm: digest for arm, other in of_arm.items() if (digest := _digest(other)) is not None}
    backend, text = course.backend, _read(log)
    record = make_record(
        result,
        model=", ".join(dict.fromkeys(_name(other) for other in of_arm.values())),
        backend=backend.name,
        facts=course.facts,
        knobs=knobs,
        profile=course.plan.profile.name,
        engine_version=backend.engine_version(text),
        engine_build=parse_build(text),
        digests=digests,
        elsewhere=isinstance(backend, (OllamaBackend, OpenAiBackend)) and not is_local(backend.url),
    )
    try:
        notes = append_record(course.order.paths.data, record)
    except VeloError as error:
        notes = (f"The result is not in the history: {error.message} ({error.hint}).",)
    for note in notes:
        cockpit.note(note)
    return record


def _name(course: Course) -> str:
    return f"{STAND_IN}{course.model.name}" if course.twin else course.model.name


def _digest(course: Course) -> str | None:
    facts, backend, model = course.facts.model, course.backend, course.model
    if facts is not None and (found := identity(facts, model.path)) is not None:
        return found
    return backend.digest(model.name) if isinstance(backend, OllamaBackend) else None


def _read(log: Path | None) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace") if log is not None else ""
    return ""
