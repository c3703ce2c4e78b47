"""One arm while a comparison runs: its server, how fast it was last, and its turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256

from velollm.backends.base import Completion, EngineCounters, RunningServer
from velollm.bench.conditions import Energy, Machine
from velollm.bench.design import Design
from velollm.bench.exchange import Request, RequestBook, ask, ask_together, settle
from velollm.bench.memory import ServerProcesses
from velollm.bench.result import Start
from velollm.bench.samples import CrowdFigures, Sample, SingleFigures, crowd_figures, single_figures
from velollm.bench.sizes import (
    Answer,
    Sizes,
    Speed,
    aggregate_answer,
    estimate_crowd_s,
    estimate_single_s,
    single_answer,
)
from velollm.bench.talk import company, talk, talk_figures
from velollm.bench.workload import USERS, Workload
from velollm.errors import EngineError

_WARM_ROUND = -1
_WARM_PROMPT_TOKENS = 16
_WARM_ANSWER = Answer(8, 3.0)
_WARM_QUICK_ANSWER = Answer(8, 2.0)
_WAKE_ANSWER = Answer(2, 3.0)
_LEAST_WARM_DEADLINE_S = 10.0
_MOST_WARM = 5
_STABLE = 0.1
_COLD_SHARE = 0.1
_WARM_SHARE = 0.03
_GREEDY_PROMPT = "A short account of how a lighthouse keeper spends the hour before sunrise:\n\n"
# Not more: after 30 equal pieces, Ollama ends an answer without a word (llm/llama_server.go:1692-1703).
_GREEDY_TOKENS = 24
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
    crowds: list[CrowdFigures] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    energy_basis: str | None = None

    def sample(self, arm: str, workload: str, round_index: int) -> Sample:
        """The turn as a raw sample."""
        four = next((crowd for crowd in self.crowds if crowd.users == USERS), None)
        aggregate = four or CrowdFigures()
        return Sample(
            arm=arm,
            workload=workload,
            round=round_index,
            order=self.order,
            aggregate_4_tokens_per_s=aggregate.tokens_per_s,
            worst_ttft_4_s=aggregate.worst_ttft_s,
            aggregate_tokens=aggregate.tokens if four else None,
            aggregate_s=aggregate.wall_s,
            aggregate_error=next((crowd.error for crowd in self.crowds if crowd.error), None),
            crowds=tuple(self.crowds),
            peak_memory_bytes=self.peak_memory_bytes,
            gpu_memory_bytes=self.gpu_memory_bytes,
            energy_j=self.energy_j,
            energy_basis=self.energy_basis,
            **asdict(self.single),
        )


@dataclass(frozen=True)
class Live:
    """A server that is up, and its processes."""

    server: RunningServer
    processes: ServerProcesses


class Contender:
    """An arm in a comparison. With ``stays_up`` its server lives as long as the comparison, else for one visit."""

    def __init__(
        self,
        arm: Arm,
        workload: Workload,
        book: RequestBook,
        timer: Timer,
        *,
        stays_up: bool,
        machine: Machine | None = None,
    ) -> None:
        self.name = arm.name
        self.speed = Speed(1.0, 1.0)
        self.starts: list[Start] = []
        self.greedy_answer: str | None = None
        self._arm = arm
        self._workload = workload
        self._book = book
        self._timer = timer
        self._stays_up = stays_up
        self._machine = machine
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
            live = self._woken(server, began_s)
            self._fill(live)
            self.speed = replace(self.speed, start_s=self._timer.clock() - began_s)
            yield live

    def _woken(self, server: RunningServer, began_s: float) -> Live:
        """A server that has just started, with its first answer behind it."""
        load_s = self._timer.clock() - began_s
        live = Live(server, ServerProcesses(server))
        _, completion = self._warm_request(live, _WAKE_ANSWER, 0)
        cold_s = None if completion.ttft_s is None else load_s + completion.ttft_s
        self.starts.append(Start(self.name, load_s, cold_s, server.buffers()))
        return live

    def warm_up(self, stack: ExitStack, design: Design, *, quick: bool) -> None:
        """Start the arm, let it load what it loads at the first request, and answer until its speed is stable."""
        if self._stays_up:
            began_s = self._timer.clock()
            server = stack.enter_context(self._arm.start())
            if quick:
                self._live = Live(server, ServerProcesses(server))
            else:
                self._live = self._woken(server, began_s)
        with self.visit() as live:
            answer = _WARM_QUICK_ANSWER if quick else _WARM_ANSWER
            self._warm_request_until_stable(live, answer, 1 if quick else _MOST_WARM)
            if design.whole and not quick:
                live = self._ask_whole(live)
            if self._stays_up:
                self._live = live
                self._fill(live)

    def answer_again(self) -> None:
        """One more short answer, for its speed. Raises `VeloError` where none comes."""
        with self.visit() as live:
            self._warm_request_until_stable(live, _WARM_QUICK_ANSWER, 1)

    def _warm_request_until_stable(self, live: Live, answer: Answer, most: int) -> None:
        until_s = self._timer.clock() + _WARM_SHARE * self._timer.left_s()
        rate: float | None = None
        for index in range(1, most + 1):
            request, completion = self._warm_request(live, answer, index)
            self._learn_speed(single_figures(completion, request.tokens), answer)
            before, rate = rate, self.speed.decode_tokens_per_s
            if (before is not None and abs(rate / before - 1) <= _STABLE) or self._timer.clock() >= until_s:
                return

    def _ask_whole(self, live: Live) -> Live:
        """What is asked once only: a greedy answer, and the first token after the model has left the memory.

        The server as it is afterwards: the engine's process may be another.
        """
        deadline_s = max(_LEAST_WARM_DEADLINE_S, 0.1 * self._timer.left_s())
        text = live.server.greedy_text(_GREEDY_PROMPT, max_tokens=_GREEDY_TOKENS, deadline_s=deadline_s)
        self.greedy_answer = None if text is None else sha256(text.encode()).hexdigest()[:16]
        # Loading once more is worth a small part of the time only.
        load_s = max((start.load_s for start in self.starts), default=0.0)
        if load_s > _COLD_SHARE * self._timer.left_s() or not live.server.unload():
            return live
        _, completion = self._warm_request(live, _WAKE_ANSWER, _MOST_WARM + 1)
        if (loaded_s := live.server.load_s()) is not None:
            self.starts.append(Start(self.name, loaded_s, completion.ttft_s, live.server.buffers()))
        return Live(live.server, ServerProcesses(live.server))

    def _fill(self, live: Live) -> None:
        """Let the server read what comes before every prompt, where something does."""
        if filler := self._book.filler(live.server):
            deadline_s = max(_LEAST_WARM_DEADLINE_S, 0.4 * self._timer.left_s())
            request = Request(filler, live.server.count_tokens(filler), 0)
            self._check(live, ask(live.server, request, Answer(1, deadline_s), deadline_s).error)

    def single_part(self, live: Live, turn: Turn, round_index: int, sizes: Sizes) -> None:
        """One user's request."""
        request = self._book.request(live.server, round_index, 0, sizes.prompt_tokens)
        answer = single_answer(self.speed, sizes)
        deadline_s = self._timer.deadline_s(estimate_single_s(self.speed, sizes))
        counters, energy = live.server.counters(), self._energy()
        began_s = self._timer.clock()
        with company(self._workload, live.server, self._book, round_index):
            answers = talk(live.server, self._book, request, answer, deadline_s, (round_index, sizes.turns))
        self._count(turn, energy, answers[-1])
        if sizes.turns == 1:
            answers = [with_counters(answers[0], counters, live.server.counters())]
        completion = answers[-1]
        turn.single = talk_figures(answers, request.tokens)
        if not turn.single.error and sizes.turns == 1 and turn.single.answer_tokens >= sizes.decode_tokens:
            turn.single = replace(turn.single, turn_s=turn.single.answer_s)
        self._check(live, turn.single.error)
        self._learn_speed(turn.single, answer, timed_out=self._timer.clock() - began_s >= 0.9 * deadline_s)
        self._settle_after(live, completion)
        if sizes.asks_again and sizes.turns == 1 and not turn.single.error:
            again = ask(live.server, request, _WAKE_ANSWER, deadline_s)
            turn.single = replace(turn.single, cached_ttft_s=again.ttft_s if again.finish != "error" else None)
            self._settle_after(live, again)

    def _energy(self) -> Energy | None:
        return None if self._machine is None else self._machine.energy()

    def _count(self, turn: Turn, before: Energy | None, completion: Completion) -> None:
        after = self._energy()
        if before is None or after is None or completion.finish == "error" or before.basis != after.basis:
            return
        # A counter that began anew meanwhile tells nothing.
        if (joules := after.joules - before.joules) > 0:
            turn.energy_j, turn.energy_basis = joules, after.basis

    def aggregate_part(self, live: Live, turn: Turn, round_index: int, sizes: Sizes) -> None:
        """The requests of several users at once, a few first, then more."""
        first = 1
        for users in sizes.levels:
            failed = turn.single.error or any(crowd.error for crowd in turn.crowds)
            if failed:
                turn.crowds.append(CrowdFigures(users, error="not tried, as the request before it failed"))
            else:
                turn.crowds.append(self._crowd(live, round_index, range(first, first + users), sizes))
            first += users

    def _crowd(self, live: Live, round_index: int, users: range, sizes: Sizes) -> CrowdFigures:
        prompt_tokens = sizes.aggregate_prompt_tokens
        requests = [self._book.request(live.server, round_index, user, prompt_tokens) for user in users]
        deadline_s = self._timer.deadline_s(estimate_crowd_s(self.speed, sizes, len(users)))
        delays_s = self._book.delays_s(round_index, len(users))
        answer = aggregate_answer(self.speed, sizes)
        completions = ask_together(live.server, requests, answer, deadline_s + max(delays_s), delays_s)
        figures = crowd_figures(completions, delays_s)
        self._check(live, figures.error)
        self._settle_after(live, *completions)
        return figures

    def _warm_request(self, live: Live, answer: Answer, index: int) -> tuple[Request, Completion]:
        request = self._book.request(live.server, _WARM_ROUND, index, _WARM_PROMPT_TOKENS)
        deadline_s = max(_LEAST_WARM_DEADLINE_S, 0.4 * self._timer.left_s())
        completion = ask(live.server, request, answer, deadline_s)
        if completion.finish == "error" or not completion.events:
            raise EngineError(
                f"'{self.name}' does not answer",
                completion.error or "no token came",
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
        decode = figures.decode_tokens_per_s
        if decode is None and figures.answer_tokens > 1 and figures.answer_s:
            decode = figures.answer_tokens / figures.answer_s  # all came in one piece: at least so fast
        # Fewer than two tokens in the time: slower than one in that time.
        decode = decode or 1 / answer.limit_s
        prefill = figures.prefill_tokens_per_s or self.speed.prefill_tokens_per_s
        self.speed = Speed(prefill, decode, self.speed.start_s)

    def _check(self, live: Live, error: str | None) -> None:
        """Give up on an arm whose server is gone or which only fails."""
        if live.processes.all_ended():
            raise EngineError(
                f"the server of '{self.name}' ended in the middle of the measurement",
                error or "it ended after an answer",
                "where memory was short, try --profile low-memory",
            )
        self._failures = self._failures + 1 if error else 0
        if self._failures >= _MOST_FAILURES:
            raise EngineError(
                f"'{self.name}' failed {self._failures} times in a row, the last time with",
                error or "no answer",
                "give more time, for example --budget 10m, or try a smaller model",
            )


def with_counters(completion: Completion, before: EngineCounters | None, after: EngineCounters | None) -> Completion:
    """A completion with what the engine's own counters say of it where its answer did not: drafts, and fresh tokens.

    Ollama's own count of the prompt has cached tokens in it, and it drops what was drafted.
    """
    if before is None or after is None:
        return completion
    fresh = after.prompt_tokens - before.prompt_tokens
    if completion.cached_prompt_tokens is None and fresh > 0:
        told = completion.fresh_prompt_tokens
        cached = None if told is None else max(told - fresh, 0)
        completion = replace(completion, fresh_prompt_tokens=fresh, cached_prompt_tokens=cached)
    if completion.drafted_tokens is None and after.drafted_tokens > before.drafted_tokens:
        drafted, accepted = after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens
        completion = replace(completion, drafted_tokens=drafted, accepted_tokens=accepted)
    return completion
