"""Arms against each other, in turns, on the same prompts, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from velollm.bench.contender import Arm, Contender, Timer, Turn
from velollm.bench.exchange import RequestBook
from velollm.bench.notes import note_samples, note_sizes
from velollm.bench.result import BenchResult
from velollm.bench.samples import Sample
from velollm.bench.sizes import (
    FULL_ROUNDS,
    Sizes,
    Speed,
    estimate_aggregate_s,
    estimate_rest_s,
    estimate_single_s,
    fit_sizes,
    shrink_sizes,
)
from velollm.bench.workload import USERS, Workload
from velollm.errors import VeloError

__all__ = ["DEFAULT_BUDGET", "QUICK_BUDGET", "Arm", "BenchProgress", "Budget", "balanced_order", "run_bench"]

BenchProgress = Callable[[float, str, float], None]
"""Called with the share that is done (0 to 1), what is being done, and the seconds left by estimate."""

_Part = Literal["single", "users"]
_ESTIMATES: dict[_Part, Callable[[Speed, Sizes], float]] = {
    "single": estimate_single_s,
    "users": estimate_aggregate_s,
}


class OverBudgetError(VeloError):
    """The time was over before anything was measured."""


@dataclass(frozen=True)
class Budget:
    """Seconds that everything from the first server start on may take; ``quick`` gives up rounds for time."""

    seconds: float
    quick: bool = False


DEFAULT_BUDGET = Budget(180.0)
QUICK_BUDGET = Budget(25.0, quick=True)


def run_bench(
    arms: Sequence[Arm],
    workload: Workload,
    budget: Budget = DEFAULT_BUDGET,
    *,
    together: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    progress: BenchProgress | None = None,
    default: str = "default",
    tuned: str = "tuned",
    seed: int = 0,
    context_tokens: int | None = None,
) -> BenchResult:
    """Measure arms in interleaved rounds (A B, B A, A B, ...), each round with a prompt of its own for all arms.

    With ``together`` all servers are up the whole time (an idle one takes no CPU), else each is started for
    each of its turns. ``context_tokens`` is what one slot of the smallest arm holds. ``seed`` chooses the prompts:
    against a server that outlives a run, another seed avoids what it has in its cache.

    A failed request is a failed sample and leaves its round out of the ratios. The last rounds may be missing
    where time ran out; the result's notes say what was cut.

    Raises:
        VeloError: an arm's server does not start, ends, or fails three times in a row, or the budget is over before
            anything was measured. Servers are stopped on the way out, also on Ctrl-C.
    """
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"arms need names that differ: {names}")
    timer = Timer(budget.seconds, clock)
    book = RequestBook(workload, seed)
    contenders = [Contender(arm, book, timer, stays_up=together) for arm in arms]
    with ExitStack() as stack:
        reporter = _Reporter(progress, timer)
        bench = _Bench(contenders, workload, timer, reporter, quick=budget.quick, context_tokens=context_tokens)
        samples = bench.run(stack, together=together)
    return BenchResult(
        workload=workload.name,
        arms=tuple(names),
        default=default,
        tuned=tuned,
        runs=tuple(samples),
        sizes=bench.sizes,
        notes=(*bench.notes, *note_samples(samples)),
        elapsed_s=timer.elapsed_s(),
        budget_s=budget.seconds,
        quick=budget.quick,
    )


def balanced_order(count: int, round_index: int) -> tuple[int, ...]:
    """Who goes when: every second round turns the order round, and with three or more the first changes too."""
    turn = (round_index // 2) % count if count > 2 else 0
    order = (*range(turn, count), *range(turn))
    return order[::-1] if round_index % 2 else order


class _Reporter:
    """Tells how far the comparison is; the share never goes back."""

    def __init__(self, progress: BenchProgress | None, timer: Timer) -> None:
        self._progress = progress
        self._timer = timer
        self._share = 0.0

    def tell(self, text: str, left_s: float) -> None:
        if self._progress is None:
            return
        elapsed_s = self._timer.elapsed_s()
        total_s = elapsed_s + max(left_s, 0.0)
        self._share = max(self._share, elapsed_s / total_s if total_s > 0 else 1.0)
        self._progress(self._share, text, max(left_s, 0.0))


class _Bench:
    def __init__(
        self,
        contenders: Sequence[Contender],
        workload: Workload,
        timer: Timer,
        reporter: _Reporter,
        *,
        quick: bool,
        context_tokens: int | None,
    ) -> None:
        self.notes: list[str] = []
        self.sizes: Sizes
        self._reporter = reporter
        self._contenders = contenders
        self._workload = workload
        self._timer = timer
        self._quick = quick
        self._context_tokens = context_tokens

    def run(self, stack: ExitStack, *, together: bool) -> list[Sample]:
        for contender in self._contenders:
            self._reporter.tell(f"starting '{contender.name}'", self._timer.left_s())
            contender.warm_up(stack, quick=self._quick)
        self._plan()
        samples: list[Sample] = []
        round_index = 0
        while round_index < self.sizes.rounds:
            self._keep_in_time(round_index)
            if self._is_time_up(round_index):
                break
            samples += self._round(round_index, together)
            round_index += 1
        self._reporter.tell("done", 0.0)
        return samples

    def _round(self, round_index: int, together: bool) -> list[Sample]:
        order = balanced_order(len(self._contenders), round_index)
        turns = {index: Turn(place) for place, index in enumerate(order)}
        parts: list[_Part] = ["single", "users"] if self.sizes.has_aggregate(round_index) else ["single"]
        # Servers that stay up take turns within each part, so that what is compared lies close in time.
        visits = [[part] for part in parts] if together else [parts]
        left_s = estimate_rest_s(self._speeds(), self.sizes, round_index)
        for visit in visits:
            for index in order:
                contender = self._contenders[index]
                users = f", {USERS} users" if "users" in visit else ""
                self._reporter.tell(
                    f"round {round_index + 1} of {self.sizes.rounds}: '{contender.name}'{users}", left_s
                )
                left_s -= sum(_ESTIMATES[part](contender.speed, self.sizes) for part in visit)
                self._visit(contender, turns[index], round_index, visit)
        return [
            turn.sample(self._contenders[index].name, self._workload.name, round_index)
            for index, turn in sorted(turns.items())
        ]

    def _visit(self, contender: Contender, turn: Turn, round_index: int, parts: Sequence[_Part]) -> None:
        with contender.visit() as live:
            for part in parts:
                measure = contender.aggregate_part if part == "users" else contender.single_part
                measure(live, turn, round_index, self.sizes)
            turn.peak_memory_bytes = live.processes.read_peak_bytes()

    def _speeds(self) -> dict[str, Speed]:
        return {contender.name: contender.speed for contender in self._contenders}

    def _plan(self) -> None:
        left_s = self._timer.left_s()
        if left_s <= 0:
            raise OverBudgetError(
                f"the budget of {self._timer.seconds:.0f} s was over when the servers had started",
                "give more time, for example --budget 3m",
            )
        self.sizes = fit_sizes(
            self._workload, self._speeds(), left_s, quick=self._quick, context_tokens=self._context_tokens
        )
        self.notes += note_sizes(self._workload, self.sizes, self._speeds(), self._timer.seconds)

    def _keep_in_time(self, round_index: int) -> None:
        """Smaller sizes for the rounds to come, where the arms have turned out slower than planned for."""
        smaller = shrink_sizes(
            self._workload,
            self.sizes,
            self._speeds(),
            self._timer.left_s(),
            round_index,
            quick=self._quick,
            context_tokens=self._context_tokens,
        )
        if smaller != self.sizes:
            self.notes.append(f"cut before round {round_index + 1}, as time ran short:")
            self.notes += note_sizes(self._workload, smaller, self._speeds(), self._timer.seconds)
            self.sizes = smaller

    def _is_time_up(self, round_index: int) -> bool:
        """Is there no time for another round? The rounds that a verdict needs may run to the budget's last second."""
        if round_index == 0:
            return False
        left_s = self._timer.left_s()
        next_s = sum(estimate_single_s(speed, self.sizes) for speed in self._speeds().values())
        is_needed = round_index < FULL_ROUNDS and not self._quick
        if left_s > 0 and (is_needed or next_s <= left_s):
            return False
        self.notes.append(f"stopped after {round_index} of {self.sizes.rounds} rounds, as the time was over")
        return True
