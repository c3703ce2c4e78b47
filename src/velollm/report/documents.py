"""Nouns to the fields of JSON documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from velollm.apply import UndoResult
from velollm.bench.apart import Apart
from velollm.bench.history import Record, result_of
from velollm.bench.result import BenchResult, render_result
from velollm.bench.trend import Trend
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


def record_fields(record: Record) -> dict[str, Any]:
    """One line of the list of results: what it is, and each arm's figures."""
    result = result_of(record)
    return {
        "id": record.id,
        "taken_at": record.taken_at,
        "model": record.model,
        "backend": record.backend,
        "engine_version": record.engine_version,
        "machine": record.machine,
        "origin": record.origin,
        "profile": record.profile,
        "workload": record.workload,
        "depth_tokens": record.depth_tokens,
        "quick": record.quick,
        "incomplete": record.incomplete,
        "arms": list(record.arms),
        "summary": {
            arm: {metric: asdict(interval) for metric, interval in result.summary(arm).items()} for arm in record.arms
        },
    }


def whole_record_fields(record: Record) -> dict[str, Any]:
    """A result as `velollm bench` printed it, with what it was taken under. ``sizes`` None: an old one without."""
    sizes = None if record.sizes is None else asdict(record.sizes)
    return {
        **record_fields(record),
        **result_fields(result_of(record)),
        "sizes": sizes,
        "knobs": record.knobs,
        "digests": record.digests,
        "engine_build": record.engine_build,
        "facts": record.facts,
    }


def trend_fields(trend: Trend) -> dict[str, Any]:
    """What a version of the engine changed; ``ratios`` above 1: the newer one is better."""
    return {**asdict(trend), "ratios": {metric: asdict(ratio) for metric, ratio in trend.ratios.items()}}


def apart_fields(found: Apart) -> dict[str, Any]:
    """One arm of two results that did not take turns."""
    return {
        "arm": found.arm,
        "before": {metric: asdict(interval) for metric, interval in found.before.summary.items()},
        "after": {metric: asdict(interval) for metric, interval in found.after.summary.items()},
        "ratio": {metric: asdict(ratio) for metric, ratio in found.ratios.items()},
    }


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
