"""Where a race is run: private servers that are started once, and short samples of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

from velollm.backends.base import RunningServer
from velollm.bench.ballast import ballast
from velollm.bench.contender import Arm, Contender, Timer, Turn
from velollm.bench.design import Design
from velollm.bench.exchange import RequestBook
from velollm.bench.samples import Sample
from velollm.bench.sizes import Sizes
from velollm.bench.workload import Workload
from velollm.errors import EngineError, VeloError
from velollm.knobs import Knobs

Start = Callable[[str, Knobs], AbstractContextManager[RunningServer]]

_DESIGN = Design(levels=())
# How long one sample may take: a race of a minute or two then has some dozens of them.
_SAMPLES = 80
_LEAST_SAMPLE_S, _MOST_SAMPLE_S = 0.4, 8.0
_LEAST_PROMPT_TOKENS, _LEAST_ANSWER_TOKENS = 32, 24
_SHORT_ANSWER_TOKENS = 12
_PREFILL_SHARE = 2.0
# Guesses need text to be made from: a shorter prompt hardly repeats itself, a shorter answer hardly begins.
_GUESS_PROMPT_TOKENS, _GUESS_ANSWER_TOKENS = 192, 64
_GUESS_TIMES = 4.0
_BATCH_GROUPS = frozenset({"batch", "batch_threads", "flash_attention"})
_BLOCK = 3
_ALONE_SLOWER = 4.0


class Track:
    """Starts servers (``start`` gives one for a name and knobs) and asks them what the workload asks.

    ``side_by_side``: may so many servers be up together? Where not even two may, each is started for a block of
    samples and stopped. ``users``: how many ask at once, 0 for one alone.
    """

    def __init__(
        self,
        start: Start,
        workload: Workload,
        *,
        users: int,
        budget_s: float,
        context_tokens: int | None,
        side_by_side: Callable[[int], bool],
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._start = start
        self._workload = workload
        self._users = users
        self._context_tokens = context_tokens
        self._timer = Timer(budget_s, clock)
        self._book = RequestBook(workload, seed)
        self._side_by_side = side_by_side
        self._stays_up = side_by_side(2)
        self._up: dict[str, tuple[Contender, ExitStack]] = {}
        self._held = ExitStack()
        self._budget_s = budget_s
        self._round = 0
        self._chosen: dict[str, Sizes] = {}
        self.start_s = 0.0
        """How long the last start took, until the server had answered once."""

    def __enter__(self) -> Track:
        if self._stays_up:
            self._held.enter_context(ballast())
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            for name in list(self._up):
                self.leave(name)

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._timer.left_s()

    @property
    def block(self) -> int:
        """How many rounds are worth one start of a server."""
        return 1 if self._stays_up else _BLOCK

    def room(self, wanted: int) -> int:
        """How many servers may be up beside the one to beat; at least one, which then takes turns with it."""
        while wanted > 1 and not (self._stays_up and self._side_by_side(wanted + 1)):
            wanted -= 1
        return wanted

    def enter(self, name: str, knobs: Knobs) -> None:
        """Start a server with these knobs and let it answer once.

        Raises:
            VeloError: it does not start or does not answer; nothing of it is left then.
        """
        began_s = self._timer.clock()
        stack = ExitStack()
        contender = Contender(
            Arm(name, lambda: self._start(name, knobs)),
            self._workload,
            self._book,
            self._timer,
            stays_up=self._stays_up,
        )
        try:
            contender.warm_up(stack, _DESIGN, quick=True)
        except BaseException:
            stack.close()
            raise
        self._up[name] = (contender, stack)
        self.start_s = self._timer.clock() - began_s

    def leave(self, name: str) -> None:
        """Stop a server."""
        if (found := self._up.pop(name, None)) is not None:
            found[1].close()

    def is_hopeless(self, name: str, other: str) -> bool:
        """Is it slower by so much that a sample would only cost time? Where its first answer was, a second one tells.

        Raises:
            VeloError: it does not answer a second time.
        """
        ours, theirs = self._up[name][0], self._up[other][0]

        def is_slow() -> bool:
            return ours.speed.decode_tokens_per_s * _ALONE_SLOWER < theirs.speed.decode_tokens_per_s

        if is_slow() and self._stays_up:
            ours.answer_again()  # something else may have kept the machine for a moment
        return is_slow()

    def next_rounds(self) -> tuple[int, ...]:
        """Numbers of the next rounds; prompts of other rounds are other prompts."""
        first, self._round = self._round, self._round + self.block
        return tuple(range(first, self._round))

    def measure(self, name: str, rounds: Sequence[int], group: str) -> list[Sample]:
        """One sample for each round.

        Raises:
            VeloError: the server is gone, or fails again and again.
        """
        contender = self._up[name][0]
        sizes = self._sizes(contender, group)
        samples: list[Sample] = []
        with contender.visit() as live:
            for number in rounds:
                turn = Turn(0)
                if self._users:
                    contender.aggregate_part(live, turn, number, sizes)
                else:
                    contender.single_part(live, turn, number, sizes)
                samples.append(turn.sample(name, self._workload.name, number))
        return samples

    def _sizes(self, contender: Contender, group: str) -> Sizes:
        """Prompt and answer in the workload's own proportion, as long as the time allows; kept once they are chosen."""
        if group not in self._chosen:
            self._chosen[group] = self._choose(contender, group)
        return self._chosen[group]

    def _choose(self, contender: Contender, group: str) -> Sizes:
        speed, workload = contender.speed, self._workload
        sample_s = min(max(self._budget_s / _SAMPLES, _LEAST_SAMPLE_S), _MOST_SAMPLE_S)
        prompt_tokens = workload.aggregate_prompt_tokens if self._users else workload.prompt_tokens
        answer_tokens = workload.aggregate_decode_tokens if self._users else workload.decode_tokens
        whole_s = prompt_tokens / speed.prefill_tokens_per_s + answer_tokens / speed.decode_tokens_per_s
        share = min(1.0, sample_s / (whole_s * max(1, self._users)))
        prompt = max(_LEAST_PROMPT_TOKENS, round(prompt_tokens * share))
        answer = max(_LEAST_ANSWER_TOKENS, round(answer_tokens * share))
        if group in _BATCH_GROUPS and not self._users:
            prompt = max(prompt, min(1024, round(_PREFILL_SHARE * sample_s * speed.prefill_tokens_per_s)))
            answer = _SHORT_ANSWER_TOKENS if group == "batch_threads" else answer
        if group == "speculation":
            # A slow model gets less of it, as a sample may not cost the whole budget.
            share = min(1.0, _GUESS_TIMES * sample_s / (whole_s * max(1, self._users)))
            prompt = max(prompt, min(_GUESS_PROMPT_TOKENS, round(prompt_tokens * share)))
            answer = max(answer, min(_GUESS_ANSWER_TOKENS, round(answer_tokens * share)))
        if self._context_tokens is not None:
            room = self._context_tokens * 3 // 4
            answer = min(answer, max(room // 2, 1))
            prompt = min(prompt, max(room - answer, 1))
        crowd = (self._users,) if self._users else ()
        return Sizes(0, 1, prompt, answer, max(4.0, 2 * sample_s), len(crowd), prompt, answer, levels=crowd)


def reason_of(error: VeloError) -> str:
    """Why a candidate is out, in one line: the engine's own reason, as the candidate stands beside it."""
    reason = error.reason if isinstance(error, EngineError) else error.message
    return " ".join(reason.split()) or "it failed"
