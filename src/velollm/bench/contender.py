"""One arm while a comparison runs: its server, how fast it was last, and its turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace

from velollm.backends.base import Completion, RunningServer
from velollm.bench.exchange import Request, RequestBook, ask, ask_together, settle
from velollm.bench.memory import ServerProcesses
from velollm.bench.samples import AggregateFigures, Sample, SingleFigures, aggregate_figures, single_figures
from velollm.bench.sizes import (
    Answer,
    Sizes,
    Speed,
    aggregate_answer,
    estimate_aggregate_s,
    estimate_single_s,
    single_answer,
)
from velollm.bench.workload import USERS
from velollm.errors import VeloError

_WARM_ROUND = -1
_WARM_PROMPT_TOKENS = 16
_WARM_ANSWER = Answer(8, 3.0)
_WARM_QUICK_ANSWER = Answer(8, 2.0)
_WAKE_ANSWER = Answer(2, 3.0)
_LEAST_WARM_DEADLINE_S = 10.0
_MOST_FAILURES = 3
_SETTLE_S = 10.0
_TIMED_OUT = 5.0  # a deadline is about three times what was expected, so the arm is slower by more than that


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: its name, and how to start a private server with its knobs."""

    name: str
    start: Callable[[], AbstractContextManager[RunningServer]]


class Timer:
    """The time budget of a comparison, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self.clock = clock
        self._began_s = clock()

    def elapsed_s(self) -> float:
        return self.clock() - self._began_s

    def left_s(self) -> float:
        return self.seconds - self.elapsed_s()

    def deadline_s(self, expected_s: float) -> float:
        """How long a request may take that should take ``expected_s``."""
        return min(3 * expected_s + 3, max(self.left_s(), 0) + expected_s + 3)


@dataclass
class Turn:
    """What one arm did in one round so far; ``order`` is its place in the round."""

    order: int
    single: SingleFigures = field(default_factory=SingleFigures)
    aggregate: AggregateFigures | None = None
    peak_memory_bytes: int | None = None

    def sample(self, arm: str, workload: str, round_index: int) -> Sample:
        """The turn as a raw sample."""
        aggregate = self.aggregate or AggregateFigures()
        return Sample(
            arm=arm,
            workload=workload,
            round=round_index,
            order=self.order,
            aggregate_4_tokens_per_s=aggregate.tokens_per_s,
            worst_ttft_4_s=aggregate.worst_ttft_s,
            aggregate_tokens=aggregate.tokens if self.aggregate else None,
            aggregate_s=aggregate.wall_s,
            aggregate_error=aggregate.error,
            peak_memory_bytes=self.peak_memory_bytes,
            **asdict(self.single),
        )


@dataclass(frozen=True)
class Live:
    """A server that is up, and its processes."""

    server: RunningServer
    processes: ServerProcesses


class Contender:
    """An arm in a comparison. With ``stays_up`` its server lives as long as the comparison, else for one visit."""

    def __init__(self, arm: Arm, book: RequestBook, timer: Timer, *, stays_up: bool) -> None:
        self.name = arm.name
        self.speed = Speed(1.0, 1.0)
        self._arm = arm
        self._book = book
        self._timer = timer
        self._stays_up = stays_up
        self._live: Live | None = None
        self._failures = 0

    @contextmanager
    def visit(self) -> Iterator[Live]:
        """The arm's server: the one that is up, or one started for this visit and woken."""
        if self._live is not None:
            yield self._live
            return
        began_s = self._timer.clock()
        with self._arm.start() as server:
            live = Live(server, ServerProcesses(server))
            self._warm_request(live, _WAKE_ANSWER, 0)
            self.speed = replace(self.speed, start_s=self._timer.clock() - began_s)
            yield live

    def warm_up(self, stack: ExitStack, *, quick: bool) -> None:
        """Start the arm, let it load what it loads at the first request, and learn roughly how fast it is."""
        if self._stays_up:
            server = stack.enter_context(self._arm.start())
            self._live = Live(server, ServerProcesses(server))
        with self.visit() as live:
            if self._stays_up and not quick:
                self._warm_request(live, _WAKE_ANSWER, 0)
            answer = _WARM_QUICK_ANSWER if quick else _WARM_ANSWER
            request, completion = self._warm_request(live, answer, 1)
            self._learn_speed(single_figures(completion, request.tokens), answer)

    def single_part(self, live: Live, turn: Turn, round_index: int, sizes: Sizes) -> None:
        """One user's request."""
        request = self._book.request(live.server, round_index, 0, sizes.prompt_tokens)
        answer = single_answer(self.speed, sizes)
        deadline_s = self._timer.deadline_s(estimate_single_s(self.speed, sizes))
        began_s = self._timer.clock()
        completion = ask(live.server, request, answer, deadline_s)
        turn.single = single_figures(completion, request.tokens)
        self._check(live, turn.single.error)
        self._learn_speed(turn.single, answer, timed_out=self._timer.clock() - began_s >= 0.9 * deadline_s)
        self._settle_after(live, completion)

    def aggregate_part(self, live: Live, turn: Turn, round_index: int, sizes: Sizes) -> None:
        """Four users' requests at once."""
        if turn.single.error:
            turn.aggregate = AggregateFigures(error="not tried, as the request before it failed")
            return
        users = range(1, USERS + 1)
        prompt_tokens = sizes.aggregate_prompt_tokens
        requests = [self._book.request(live.server, round_index, user, prompt_tokens) for user in users]
        deadline_s = self._timer.deadline_s(estimate_aggregate_s(self.speed, sizes))
        completions = ask_together(live.server, requests, aggregate_answer(self.speed, sizes), deadline_s)
        turn.aggregate = aggregate_figures(completions)
        self._check(live, turn.aggregate.error)
        self._settle_after(live, *completions)

    def _warm_request(self, live: Live, answer: Answer, index: int) -> tuple[Request, Completion]:
        request = self._book.request(live.server, _WARM_ROUND, index, _WARM_PROMPT_TOKENS)
        deadline_s = max(_LEAST_WARM_DEADLINE_S, 0.4 * self._timer.left_s())
        completion = ask(live.server, request, answer, deadline_s)
        if completion.finish == "error" or not completion.events:
            raise VeloError(
                f"'{self.name}' does not answer: {completion.error or 'no token came'}",
                "give more time, for example --budget 10m, or try a smaller model",
            )
        self._settle_after(live, completion)
        return request, completion

    def _settle_after(self, live: Live, *completions: Completion) -> None:
        # An engine goes on for a while with what nobody reads any more: after a cut, and after a deadline.
        if any(completion.finish in ("time", "error") for completion in completions):
            settle(live.server, min(_SETTLE_S, max(self._timer.left_s(), 1.0)))

    def _learn_speed(self, figures: SingleFigures, answer: Answer, *, timed_out: bool = False) -> None:
        if figures.error:
            if timed_out:
                slower = Speed(
                    self.speed.prefill_tokens_per_s / _TIMED_OUT, self.speed.decode_tokens_per_s / _TIMED_OUT
                )
                self.speed = replace(slower, start_s=self.speed.start_s)
            return
        # Fewer than two tokens in the time: slower than one in that time.
        decode = figures.decode_tokens_per_s or 1 / answer.limit_s
        prefill = figures.prefill_tokens_per_s or self.speed.prefill_tokens_per_s
        self.speed = Speed(prefill, decode, self.speed.start_s)

    def _check(self, live: Live, error: str | None) -> None:
        """Give up on an arm whose server is gone or which only fails."""
        if live.processes.all_ended():
            raise VeloError(
                f"the server of '{self.name}' ended in the middle of the measurement" + (f": {error}" if error else ""),
                "it may have run out of memory: try --profile low-memory",
            )
        self._failures = self._failures + 1 if error else 0
        if self._failures >= _MOST_FAILURES:
            raise VeloError(
                f"'{self.name}' failed {self._failures} times in a row, the last time with: {error}",
                "give more time, for example --budget 10m, or try a smaller model",
            )
