"""What the journal keeps of a flight beside what it wrote: the plan, and the verdict that let it be applied."""

from __future__ import annotations

from collections.abc import Mapping

from velollm.bench.result import BenchResult
from velollm.plan import Plan
from velollm.targets.base import JSON

DETAILS_SCHEMA = 2
"""1 had ``profile`` and ``reason`` alone, and did not say so."""


def flight_details(plan: Plan, reason: str, trial: BenchResult | None) -> dict[str, JSON]:
    """The ``details`` of a flight of `velollm optimize`: plain JSON, without raw samples (those are in the history)."""
    return {
        "schema": DETAILS_SCHEMA,
        "kind": "optimize",
        "profile": plan.profile.name,
        "reason": reason,
        "plan": [
            {
                "knob": choice.name,
                "value": choice.value,
                "default": plan.defaults.get(choice.name),
                "reason": choice.reason,
                "basis": choice.basis,
            }
            for choice in plan.choices
        ],
        "verdict": None if trial is None else _verdict(plan, trial),
    }


def _verdict(plan: Plan, trial: BenchResult) -> dict[str, JSON]:
    ratios: dict[str, JSON] = {
        metric: {"estimate": ratio.estimate, "low": ratio.low, "high": ratio.high, "verdict": ratio.verdict}
        for metric, ratio in trial.ratios.items()
    }
    return {
        "metric": plan.profile.metric,
        "workload": trial.workload,
        "rounds": len({run.round for run in trial.runs}),
        "arms": {arm: _figures(trial, arm) for arm in trial.arms},
        "ratio": ratios,
    }


def _figures(trial: BenchResult, arm: str) -> Mapping[str, JSON]:
    return {
        metric: {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
        for metric, interval in trial.summary(arm).items()
    }
