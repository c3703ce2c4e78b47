"""Arms against each other, in turns, on the same prompts, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from velollm.bench.ballast import ballast
from velollm.bench.conditions import Conditions, Machine, note_conditions
from velollm.bench.contender import Arm, Contender, Live, Timer, Turn
from velollm.bench.design import FLIGHT, MOST_ROUNDS, Design
from velollm.bench.exchange import RequestBook
from velollm.bench.notes import note_control, note_samples, note_sizes, note_spread
from velollm.bench.result import BenchResult
from velollm.bench.samples import CONTROL, Sample
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
from velollm.bench.stats import compare_arms, summarise
from velollm.bench.workload import Workload
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


class BrokenError(VeloError):
    """A comparison broke off; ``partial`` is what was measured until then, marked as incomplete."""

    def __init__(self, cause: VeloError, partial: BenchResult) -> None:
        super().__init__(cause.message, cause.hint, cause.exit_code)
        self.partial = partial


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
    design: Design = FLIGHT,
    machine: Machine | None = None,
) -> BenchResult:
    """Measure arms in interleaved rounds (A B, B A, A B, ...), each round with a prompt of its own for all arms.

    With ``together`` all servers are up the whole time (an idle one takes no CPU), else each is started for
    each of its turns. ``context_tokens`` is what one slot of the smallest arm holds. ``seed`` chooses the prompts:
    against a server that outlives a run, another seed avoids what it has in its cache. A control is one more server
    of the arm ``default``.

    A failed request is a failed sample and leaves its round out of the ratios. The last rounds may be missing
    where time ran out; the result's notes say what was cut.

    Raises:
        BrokenError: after at least one round, an arm's server ends or fails three times in a row; it holds the rest.
        VeloError: a server does not start, or fails before a round is done, or the budget is over before anything was
            measured. Servers are stopped on the way out, also on Ctrl-C.
    """
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"arms need names that differ: {names}")
    controls = [replace(arm, name=f"{default}{CONTROL}") for arm in arms if arm.name == default and design.control]
    timer = Timer(budget.seconds, clock)
    book = RequestBook(workload, seed, design.depth_tokens)
    contenders = [
        Contender(arm, workload, book, timer, stays_up=together, machine=machine) for arm in (*arms, *controls)
    ]
    bench = _Bench(
        contenders,
        workload,
        timer,
        _Reporter(progress, timer),
        design,
        machine=machine,
        quick=budget.quick,
        context_tokens=context_tokens,
        default=default,
    )

    def result(incomplete: str | None = None) -> BenchResult:
        samples = tuple(bench.samples)
        return BenchResult(
            workload=workload.name,
            arms=tuple(names),
            default=default,
            tuned=tuned,
            runs=samples,
            sizes=bench.sizes,
            notes=(*bench.notes, *note_samples(samples), *note_spread(samples), *note_control(samples, default)),
            elapsed_s=timer.elapsed_s(),
            budget_s=budget.seconds,
            quick=budget.quick,
            depth_tokens=design.depth_tokens,
            starts=tuple(start for contender in contenders for start in contender.starts),
            answers={c.name: c.greedy_answer for c in contenders if c.greedy_answer is not None},
            conditions=tuple(bench.looks),
            incomplete=incomplete,
        )

    try:
        with ExitStack() as stack:
            if together and len(contenders) > 1:
                stack.enter_context(ballast())
            bench.run(stack, together=together)
    except VeloError as error:
        if not bench.samples:
            raise
        raise BrokenError(error, result(error.message)) from error
    return result()


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
        design: Design,
        *,
        machine: Machine | None,
        quick: bool,
        context_tokens: int | None,
        default: str,
    ) -> None:
        self.notes: list[str] = []
        self.samples: list[Sample] = []
        self.looks: list[Conditions] = []
        self.sizes: Sizes
        self._reporter = reporter
        self._contenders = contenders
        self._workload = workload
        self._timer = timer
        self._design = design
        self._machine = machine
        self._quick = quick
        self._context_tokens = context_tokens
        self._default = default

    def run(self, stack: ExitStack, *, together: bool) -> None:
        for contender in self._contenders:
            self._reporter.tell(f"starting '{contender.name}'", self._timer.left_s())
            contender.warm_up(stack, self._design, quick=self._quick)
        self._plan()
        self._look()
        round_index = 0
        while self._wants_more(round_index):
            self._keep_in_time(round_index)
            if self._is_time_up(round_index):
                break
            self.samples += self._round(round_index, together)
            self._look()
            round_index += 1
        self.notes += note_conditions(self.looks)
        self._reporter.tell("done", 0.0)

    def _look(self) -> None:
        if self._machine is not None:
            self.looks.append(self._machine.look())

    def _wants_more(self, round_index: int) -> bool:
        if round_index < self.sizes.rounds:
            return True
        precision = self._design.precision
        return precision is not None and round_index < MOST_ROUNDS and self._reach() > precision

    def _reach(self) -> float:
        """How far the widest of the watched intervals goes; 0 where nothing more can be learned."""
        others = [contender.name for contender in self._contenders if contender.name != self._default]
        others = [name for name in others if not name.endswith(CONTROL)]
        intervals = [
            compare_arms(self.samples, self._default, name, metric).interval if others else None
            for metric in self._design.watched
            for name in others
        ]
        if not others:
            intervals = [summarise(self.samples, self._default, metric) for metric in self._design.watched]
        return max((found.reach or 0.0 for found in intervals if found is not None), default=0.0)

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
                users = f", {max(self.sizes.levels)} users" if "users" in visit else ""
                self._reporter.tell(f"round {round_index + 1}{self._of()}: '{contender.name}'{users}", left_s)
                left_s -= sum(_ESTIMATES[part](contender.speed, self.sizes) for part in visit)
                self._visit(contender, turns[index], round_index, visit)
        return [
            turn.sample(self._contenders[index].name, self._workload.name, round_index)
            for index, turn in sorted(turns.items())
        ]

    def _of(self) -> str:
        return f" of {self.sizes.rounds}" if self._design.precision is None else ""

    def _visit(self, contender: Contender, turn: Turn, round_index: int, parts: Sequence[_Part]) -> None:
        with contender.visit() as live:
            for part in parts:
                measure = contender.aggregate_part if part == "users" else contender.single_part
                measure(live, turn, round_index, self.sizes)
            turn.peak_memory_bytes = live.processes.read_peak_bytes()
            turn.gpu_memory_bytes = self._gpu_bytes(live)

    def _gpu_bytes(self, live: Live) -> int | None:
        return None if self._machine is None else self._machine.gpu_bytes(live.server.pids())

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
            self._workload,
            self._speeds(),
            left_s,
            quick=self._quick,
            context_tokens=self._context_tokens,
            levels=self._design.levels,
        )
        if (wanted := self._design.rounds) is not None:
            aggregates = min(self.sizes.aggregate_rounds, wanted)
            self.sizes = replace(self.sizes, rounds=wanted, aggregate_rounds=aggregates)
        if self._design.whole:
            self.sizes = replace(self.sizes, asks_again=True)
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
        smaller = replace(smaller, asks_again=self.sizes.asks_again)
        if self._design.rounds is not None:
            smaller = replace(smaller, rounds=self.sizes.rounds)
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
        if self._design.precision is None or round_index < self.sizes.rounds:
            self.notes.append(f"stopped after {round_index} of {self.sizes.rounds} rounds, as the time was over")
        else:
            self.notes.append(
                f"stopped after {round_index} rounds, as the time was over: intervals reach up to {self._reach():.1%}, "
                f"not {self._design.precision:.1%}; give more time (--budget) for narrower ones"
            )
        return True
