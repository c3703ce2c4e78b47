"""What a comparison found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median

from velollm.bench.conditions import Conditions
from velollm.bench.samples import ANSWER_TTFT, METRICS, Sample
from velollm.bench.sizes import Sizes
from velollm.bench.stats import (
    Interval,
    Ratio,
    compare_arms,
    compare_control,
    control_names,
    outliers_of,
    peak_memory_bytes,
    summarise,
)
from velollm.bench.workload import USERS

_GAIN = 1.05


@dataclass(frozen=True)
class Start:
    """One start of an arm's server: until it had loaded the model, and from no model in memory to the first token.

    ``buffers``: bytes that the engine's log says it allocated, by kind (weights, kv, compute); empty where it does not.
    """

    arm: str
    load_s: float
    cold_ttft_s: float | None = None
    buffers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchResult:
    """Raw samples of a comparison; every average is computed from them when asked for.

    ``notes`` say what was cut or went wrong, one sentence each. ``sizes`` are those of the last round. ``answers``:
    a digest of each arm's greedy answer to one prompt. ``incomplete``: why the comparison broke off, None where it
    did not.
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
    depth_tokens: int = 0
    starts: tuple[Start, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Conditions, ...] = ()
    incomplete: str | None = None

    @property
    def control(self) -> str | None:
        """Name of the baseline's second visit; None where there was none."""
        names = control_names(self.runs, self.default)
        return names[1] if len(names) == 2 else None

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """`METRICS`, the answer's TTFT where a model thought before it, and the figures of each number of users."""
        thought = any(run.answer_ttft_s is not None for run in self.runs)
        names = [[name, ANSWER_TTFT.name] if name == "ttft" and thought else [name] for name in METRICS]
        flat = [name for group in names for name in group]
        kinds = ("aggregate", "worst_ttft", "fairness")
        crowds = [f"{kind}_{n}" for n in sorted({*self.levels, USERS}) for kind in kinds]
        known = [name for name in crowds if name in flat or int(name.rpartition("_")[2]) in self.levels]
        return (*(name for name in flat if name not in crowds), *known)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """How many users asked at once, in the parts that had several."""
        return tuple(sorted({crowd.users for sample in self.runs for crowd in sample.crowds}))

    def levels_of(self, arm: str) -> tuple[int, ...]:
        """Those of `levels` at which the arm's total is known."""
        crowds = [crowd for sample in self.runs if sample.arm == arm for crowd in sample.crowds]
        return tuple(sorted({crowd.users for crowd in crowds if crowd.tokens_per_s}))

    @cached_property
    def noise(self) -> Mapping[str, Ratio]:
        """The control against its baseline, for each figure: the machine's own noise. Empty without a control."""
        found = {metric: compare_control(self.runs, self.default, metric) for metric in self.metrics}
        return {metric: ratio for metric, ratio in found.items() if ratio is not None}

    @cached_property
    def against(self) -> Mapping[str, Mapping[str, Ratio]]:
        """Every other arm against the baseline, for each figure."""
        others = [arm for arm in self.arms if arm != self.default] if self.default in self.arms else []
        return {arm: {m: compare_arms(self.runs, self.default, arm, m) for m in self.metrics} for arm in others}

    @cached_property
    def ratios(self) -> Mapping[str, Ratio]:
        """Tuned against default for each of `metrics`; empty where one of the two arms did not run."""
        if self.default not in self.arms or self.tuned not in self.arms:
            return {}
        return self.against[self.tuned]

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

    def gpu_memory_bytes(self, arm: str) -> int | None:
        """The most that an arm's server was seen to hold on GPUs."""
        return max((s.gpu_memory_bytes for s in self.runs if s.arm == arm and s.gpu_memory_bytes), default=None)

    def load_s(self, arm: str) -> float | None:
        """Median time that the arm's server took to load the model; None where it was not ours to start."""
        found = [start.load_s for start in self.starts if start.arm == arm]
        return median(found) if found else None

    def cold_ttft_s(self, arm: str) -> float | None:
        """Median TTFT of a request that found no model in memory."""
        found = [s.cold_ttft_s for s in self.starts if s.arm == arm and s.cold_ttft_s is not None]
        return median(found) if found else None

    def energy_j_per_token(self, arm: str) -> float | None:
        """Joules for a token of the single user's answers; None where nothing counts them."""
        found = [s.energy_j / s.answer_tokens for s in self.runs if s.arm == arm and s.energy_j and s.answer_tokens]
        return median(found) if found else None

    def acceptance(self, arm: str) -> float | None:
        """The share of drafted tokens that was accepted; None where none was drafted, or the engine does not say."""
        drafted = sum(s.drafted_tokens or 0 for s in self.runs if s.arm == arm)
        accepted = sum(s.accepted_tokens or 0 for s in self.runs if s.arm == arm)
        return accepted / drafted if drafted else None

    def saturation(self, arm: str) -> int | None:
        """The fewest users beyond which more of them were seen to add less than 5% to the total; None: not seen."""
        found = {n: summarise(self.runs, arm, f"aggregate_{n}").estimate for n in self.levels_of(arm)}
        totals = [(n, total) for n, total in found.items() if total is not None]
        for place, (users, total) in enumerate(totals[:-1], 1):
            if all(more < _GAIN * total for _, more in totals[place:]):
                return users
        return None

    def same_answers(self, arm: str) -> bool | None:
        """Did the arm answer a greedy request with the same text as the baseline? None where that was not asked."""
        ours, theirs = self.answers.get(arm), self.answers.get(self.default)
        return None if ours is None or theirs is None else ours == theirs


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
        "ratios": {arm: {m: asdict(ratio) for m, ratio in found.items()} for arm, found in result.against.items()},
        "noise": {metric: asdict(ratio) for metric, ratio in result.noise.items()},
        "summary": {arm: _render_summary(result, arm) for arm in result.arms},
        "control": result.control,
        "depth_tokens": result.depth_tokens,
        "starts": [asdict(start) for start in result.starts],
        "conditions": [asdict(look) for look in result.conditions],
        "incomplete": result.incomplete,
    }


def _render_summary(result: BenchResult, arm: str) -> dict[str, object]:
    figures: dict[str, object] = {metric: asdict(interval) for metric, interval in result.summary(arm).items()}
    starts = [start for start in result.starts if start.arm == arm]
    outliers = {metric: outliers_of(result.runs, arm, metric) for metric in result.metrics}
    return {
        **figures,
        "peak_memory_bytes": result.peak_memory_bytes(arm),
        "gpu_memory_bytes": result.gpu_memory_bytes(arm),
        "buffers": dict(starts[-1].buffers) if starts else {},
        "load_s": result.load_s(arm),
        "cold_ttft_s": result.cold_ttft_s(arm),
        "acceptance": result.acceptance(arm),
        "energy_j_per_token": result.energy_j_per_token(arm),
        "saturation_users": result.saturation(arm),
        "same_answers": result.same_answers(arm),
        "outliers": {metric: [list(found) for found in far] for metric, far in outliers.items() if far},
    }
