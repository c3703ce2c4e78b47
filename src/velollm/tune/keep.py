"""What may be kept after a trial: never slower, and nothing for speed that is not proved faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from velollm.bench.result import BenchResult
from velollm.bench.samples import Sample, metric_of, value_of
from velollm.bench.stats import Ratio, compare_arms
from velollm.knobs import Knobs
from velollm.plan import Plan, is_for_speed

METRIC_WORDS = {
    "decode": "decode",
    "prefill": "prefill",
    "ttft": "time to first token",
    "aggregate_4": "the total of 4 users",
    "worst_ttft_4": "the worst wait of 4 users",
    "turn": "a whole turn",
}
OBJECTIVE_METRICS = {"turn": "turn", "aggregate": "aggregate_4"}


def measured_metric(objective: str, samples: Iterable[Sample]) -> str:
    """The metric of a profile's objective, where some sample has it; else decode, which all have."""
    metric = OBJECTIVE_METRICS[objective]
    return metric if any(value_of(sample, metric_of(metric)) for sample in samples) else "decode"


@dataclass(frozen=True)
class Decision:
    """``keep`` the plan, try it again without its knobs for speed (``drop_speed``), or ``leave`` all as it is."""

    action: Literal["keep", "drop_speed", "leave"]
    reason: str


def speed_knobs_against(plan: Plan, baseline: Knobs) -> tuple[str, ...]:
    """Knobs for speed, not pinned by the user, whose value differs from a baseline's."""
    return tuple(
        choice.name
        for choice in plan.choices
        if is_for_speed(choice, plan.pins) and choice.value != baseline.get(choice.name)
    )


def decide_raced(plan: Plan, result: BenchResult, baselines: Mapping[str, Knobs]) -> Decision:
    """Law 4 for what a race has found: proved faster in what it was about or in the profile's own figure.

    Against the engine's default and against what is set now, and proved slower in neither. Where the race left all as
    it was, nothing has to be proved.
    """
    metrics = dict.fromkeys((OBJECTIVE_METRICS[plan.profile.objective], plan.profile.metric))
    proof = ""
    for arm in baselines:
        if arm not in result.arms or not speed_knobs_against(plan, baselines[arm]):
            continue
        found = {metric: compare_arms(result.runs, arm, result.tuned, metric) for metric in metrics}
        for metric, ratio in found.items():
            if ratio.verdict == "slower":
                return Decision("leave", f"{METRIC_WORDS[metric]} is slower than with {_name(arm)} ({_text(ratio)})")
        faster = next((metric for metric, ratio in found.items() if ratio.verdict == "faster"), None)
        if faster is None:
            metric, ratio = next(iter(found.items()))
            return Decision(
                "drop_speed", f"{METRIC_WORDS[metric]} is not proved faster than with {_name(arm)} ({_text(ratio)})"
            )
        proof = proof or f"{METRIC_WORDS[faster]} is proved faster than with {_name(arm)} ({_text(found[faster])})"
    return Decision("keep", proof or "nothing that is for speed was turned")


def decide(plan: Plan, result: BenchResult, baselines: Mapping[str, Knobs], asked: Knobs) -> Decision:
    """Law 4 for one trial: against each baseline arm (the engine's default, and what is set now).

    A plan that turns knobs for speed must have the whole interval of the profile's ratio above 1; one that turns
    only knobs for what they enable must not be proved slower by more than the profile's accepted price. What the
    user ``asked`` for with ``--set`` is the user's word and is kept, its price beside it.
    """
    metric = plan.profile.metric
    words = METRIC_WORDS[metric]
    found = {arm: compare_arms(result.runs, arm, result.tuned, metric) for arm in baselines if arm in result.arms}
    for arm, ratio in found.items():
        if speed_knobs_against(plan, baselines[arm]) and ratio.verdict != "faster":
            return Decision("drop_speed", f"{words} is not proved faster than with {_name(arm)} ({_text(ratio)})")
    for arm, ratio in found.items():
        if ratio.verdict == "slower" and not asked and (ratio.estimate or 0) < 1 - plan.profile.accepted_price:
            return Decision("leave", f"{words} is slower than with {_name(arm)} ({_text(ratio)})")
    arm, ratio = next(iter(found.items()))
    if ratio.verdict == "faster":
        return Decision("keep", f"{words} is proved faster than with {_name(arm)} ({_text(ratio)})")
    if ratio.verdict == "slower":
        why = "you asked for it with --set" if asked else "the profile accepts that for what the plan enables"
        return Decision("keep", f"{words} is slower than with {_name(arm)} ({_text(ratio)}); {why}")
    return Decision("keep", f"{words} is not proved slower than with {_name(arm)} ({_text(ratio)})")


def _name(arm: str) -> str:
    return "what is set now" if arm == "current" else "the engine's default"


def _text(ratio: Ratio) -> str:
    if ratio.estimate is None:
        return "not measured"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.estimate:.2f}x"
    return f"{ratio.estimate:.2f}x, 95% between {ratio.low:.2f} and {ratio.high:.2f}"
