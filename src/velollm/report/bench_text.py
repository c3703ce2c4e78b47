"""What of a comparison is shown, as text: one row for each figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from velollm.bench.result import BenchResult
from velollm.bench.stats import Interval, Ratio
from velollm.units import render_bytes

_TITLES = {
    "ttft": ("TTFT", "s"),
    "answer_ttft": ("answer TTFT", "s"),
    "cached_ttft": ("TTFT, cached", "s"),
    "prefill": ("prefill", "tok/s"),
    "decode": ("decode", "tok/s"),
    "itl_p50": ("ITL p50", "ms"),
    "itl_p95": ("ITL p95", "ms"),
    "itl_p99": ("ITL p99", "ms"),
    "turn": ("whole turn", "s"),
}
MAIN_METRICS = ("ttft", "prefill", "decode")
"""Shown even where they are unknown."""


@dataclass(frozen=True)
class Row:
    """One figure: its text for each arm, and the ratio with its verdict for each arm that is compared."""

    title: str
    arms: tuple[str, ...]
    ratios: tuple[tuple[str, str], ...] = ()


def title_of(result: BenchResult) -> str:
    """Workload and depth in a few words."""
    depth = f", depth {result.depth_tokens:,} tokens" if result.depth_tokens else ""
    broken = f" (incomplete: {result.incomplete})" if result.incomplete else ""
    return f"{result.workload}{depth}{broken}"


def figure_rows(
    result: BenchResult, arms: Sequence[str] | None = None, against: Sequence[Mapping[str, Ratio]] | None = None
) -> Iterator[Row]:
    """The figures that were measured, most important ones first."""
    arms = result.arms if arms is None else arms
    against = list(result.against.values()) if against is None else against
    summaries = {arm: result.summary(arm) for arm in arms}
    for metric in result.metrics:
        found = [summaries[arm][metric] for arm in arms]
        if metric not in MAIN_METRICS and all(interval.estimate is None for interval in found):
            continue
        title, unit = metric_title(metric)
        ratios = [(render_ratio(r[metric]), r[metric].verdict) for r in against]
        yield Row(f"{title} {unit}".strip(), tuple(render_figure(i, unit) for i in found), tuple(ratios))
    yield from _other_rows(result, arms)


def metric_title(metric: str) -> tuple[str, str]:
    """A figure's name for people, and its unit."""
    if metric in _TITLES:
        return _TITLES[metric]
    kind, _, users = metric.rpartition("_")
    titles = {"aggregate": ("total", "tok/s"), "worst_ttft": ("worst TTFT", "s"), "fairness": ("fairness", "")}
    title, unit = titles[kind]
    return f"{users} users, {title}", unit


def _other_rows(result: BenchResult, arms: Sequence[str]) -> Iterator[Row]:
    """Figures without an interval; those that nobody told are left out."""
    yield Row("peak memory", tuple(render_bytes(result.peak_memory_bytes(arm)) for arm in arms))
    parts: dict[str, list[str | None]] = {
        "peak VRAM": [_bytes(result.gpu_memory_bytes(arm)) for arm in arms],
        "load s": [_seconds(result.load_s(arm)) for arm in arms],
        "TTFT, cold load s": [_seconds(result.cold_ttft_s(arm)) for arm in arms],
        "drafts accepted": [_share(result.acceptance(arm)) for arm in arms],
        "energy J/token": [_seconds(result.energy_j_per_token(arm)) for arm in arms],
        "saturated at users": [_saturation(result, arm) for arm in arms],
        "same answers": [_yes(result.same_answers(arm)) for arm in arms],
    }
    kinds = dict.fromkeys(kind for start in result.starts for kind in start.buffers)
    parts |= {f"- {kind}": [_bytes(buffers_of(result, arm).get(kind)) for arm in arms] for kind in kinds}
    for title, cells in parts.items():
        if any(cell is not None for cell in cells):
            yield Row(title, tuple(cell or "unknown" for cell in cells))


def buffers_of(result: BenchResult, arm: str) -> Mapping[str, int]:
    """Bytes by kind that an arm's engine says it allocated; empty where it does not."""
    return next((start.buffers for start in reversed(result.starts) if start.arm == arm), {})


def _bytes(count: int | None) -> str | None:
    return None if count is None else render_bytes(count)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.{_second_digits(value)}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _saturation(result: BenchResult, arm: str) -> str | None:
    users = result.saturation(arm)
    if users is not None:
        return str(users)
    levels = result.levels_of(arm)
    return f"not up to {levels[-1]}" if len(levels) > 1 else None


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def render_figure(interval: Interval, unit: str) -> str:
    """A median with its interval, in digits that fit the unit."""
    if interval.estimate is None:
        return "unknown"
    factor = 1000 if unit == "ms" else 1
    low, high = (None if end is None else end * factor for end in (interval.low, interval.high))
    digits = _second_digits(interval.estimate) if unit == "s" else 2 if unit == "" else None
    return render_interval(interval.estimate * factor, low, high, digits)


def _second_digits(seconds: float) -> int:
    """Digits after the point: hundredths, and below a tenth of a second as many as give three digits that count."""
    return 2 if seconds >= 0.1 or seconds <= 0 else 2 - math.floor(math.log10(seconds))


def render_ratio(ratio: Ratio) -> str:
    """A ratio with its interval."""
    if ratio.estimate is None:
        return "unknown"
    return render_interval(ratio.estimate, ratio.low, ratio.high, 2)


def render_interval(estimate: float, low: float | None, high: float | None, digits: int | None) -> str:
    """A figure with its interval where it has one; ``digits`` None: as many as its size asks for."""
    places = (0 if estimate >= 1000 else 1) if digits is None else digits
    text = f"{estimate:.{places}f}"
    return text if low is None or high is None else f"{text} ({low:.{places}f}-{high:.{places}f})"


def render_noise(result: BenchResult) -> str | None:
    """The machine's own noise in a line; None where there was no control."""
    found = {metric: ratio.estimate for metric, ratio in result.noise.items() if metric in MAIN_METRICS}
    parts = [f"{metric_title(metric)[0]} {abs(estimate - 1):.1%}" for metric, estimate in found.items() if estimate]
    return f"The same settings, measured twice in this run, differ by: {', '.join(parts)}." if parts else None
