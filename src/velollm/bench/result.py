"""What a comparison found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from velollm.bench.samples import ANSWER_TTFT, METRICS, Sample
from velollm.bench.sizes import Sizes
from velollm.bench.stats import Interval, Ratio, compare_arms, peak_memory_bytes, summarise


@dataclass(frozen=True)
class BenchResult:
    """Raw samples of a comparison; every average is computed from them when asked for.

    ``notes`` say what was cut or went wrong, one sentence each. ``sizes`` are those of the last round.
    """

    workload: str
    arms: tuple[str, ...]
    default: str
    tuned: str
    runs: tuple[Sample, ...]
    sizes: Sizes
    notes: tuple[str, ...]
    elapsed_s: float
    budget_s: float
    quick: bool
    current: str = "current"

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures: `METRICS`, and next to the TTFT that of the answer where a model thought before it."""
        thought = any(run.answer_ttft_s is not None for run in self.runs)
        names = [[name, ANSWER_TTFT.name] if name == "ttft" and thought else [name] for name in METRICS]
        return tuple(name for group in names for name in group)

    @cached_property
    def ratios(self) -> Mapping[str, Ratio]:
        """Tuned against default for each of `metrics`; empty where one of the two arms did not run."""
        if self.default not in self.arms or self.tuned not in self.arms:
            return {}
        return {metric: compare_arms(self.runs, self.default, self.tuned, metric) for metric in self.metrics}

    @cached_property
    def ratios_to_current(self) -> Mapping[str, Ratio]:
        """Tuned against what was set before; empty where that was no arm of its own."""
        if self.current not in self.arms or self.tuned not in self.arms:
            return {}
        return {metric: compare_arms(self.runs, self.current, self.tuned, metric) for metric in self.metrics}

    def summary(self, arm: str) -> dict[str, Interval]:
        """One arm's figures for each of `metrics`, with their intervals."""
        return {metric: summarise(self.runs, arm, metric) for metric in self.metrics}

    def peak_memory_bytes(self, arm: str) -> int | None:
        """The most memory that an arm's server held."""
        return peak_memory_bytes(self.runs, arm)


def render_result(result: BenchResult) -> dict[str, object]:
    """The JSON form of a result: ``runs``, ``ratio``, and what is needed to read them."""
    return {
        "workload": result.workload,
        "arms": list(result.arms),
        "quick": result.quick,
        "budget_s": result.budget_s,
        "elapsed_s": round(result.elapsed_s, 3),
        "sizes": asdict(result.sizes),
        "notes": list(result.notes),
        "runs": [asdict(sample) for sample in result.runs],
        "ratio": {metric: asdict(ratio) for metric, ratio in result.ratios.items()},
        "ratio_to_current": {metric: asdict(ratio) for metric, ratio in result.ratios_to_current.items()},
        "summary": {arm: _render_summary(result, arm) for arm in result.arms},
    }


def _render_summary(result: BenchResult, arm: str) -> dict[str, object]:
    figures: dict[str, object] = {metric: asdict(interval) for metric, interval in result.summary(arm).items()}
    return {**figures, "peak_memory_bytes": result.peak_memory_bytes(arm)}
