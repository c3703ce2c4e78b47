"""Nouns to the fields of JSON documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from velollm.apply import UndoResult
from velollm.bench.result import BenchResult, render_result
from velollm.facts import Facts
from velollm.journal import Change, Flight
from velollm.plan import Plan
from velollm.targets.base import State


def plan_fields(facts: Facts, plan: Plan, label: Callable[[str], str]) -> dict[str, Any]:
    """``facts``, ``knobs`` and ``changes``; ``label`` names the place of a kind of setting.

    ``placement`` is None where the model does not fit or is not known; ``nearest`` is what would fit, or fit better.
    """
    knobs = [
        {
            "name": choice.name,
            "value": choice.value,
            "default": plan.defaults.get(choice.name),
            "reason": choice.reason,
            "basis": choice.basis,
        }
        for choice in plan.choices
    ]
    changes = [{**asdict(change), "target": label(change.target)} for change in plan.changes]
    return {
        "profile": plan.profile.name,
        "facts": facts.model_dump(mode="json"),
        "knobs": knobs,
        "changes": changes,
        "candidates": [dict(candidate) for candidate in plan.candidates],
        "placement": None if plan.placement is None else asdict(plan.placement),
        "nearest": [{**asdict(item), "knobs": dict(item.knobs)} for item in plan.nearest],
    }


def result_fields(result: BenchResult) -> dict[str, Any]:
    """Raw samples, ratios and sizes of a comparison."""
    return dict(render_result(result))


def undo_fields(result: UndoResult) -> dict[str, Any]:
    """What undo did."""
    return {
        "flight": result.flight.id if result.flight else None,
        "restored": list(result.restored),
        "conflicts": [asdict(conflict) for conflict in result.conflicts],
        "already": result.already,
        "notes": list(result.notes),
    }


def flight_fields(flight: Flight) -> dict[str, Any]:
    """One line of the history."""
    return {
        "flight": flight.id,
        "time": flight.time,
        "status": flight.status,
        "version": flight.meta.version,
        "backend": flight.meta.backend,
        "model": flight.meta.model,
        "summary": flight.meta.summary,
        "places": [change.label for change in flight.changes],
        "details": dict(flight.meta.details),
        "changes": [_change_fields(change) for change in flight.changes],
    }


def _change_fields(change: Change) -> dict[str, Any]:
    """One place that a flight wrote: content as text, None where there was none or it is no text."""
    return {
        "place": change.label,
        "before": _content(change.before),
        "after": _content(change.after),
        "written": change.done,
        "undone": change.undone,
        "conflict": change.conflict,
    }


def _content(state: State) -> str | None:
    try:
        return None if state.content is None else state.content.decode("utf-8")
    except UnicodeDecodeError:
        return None
