"""Servers that answer by a known law on a clock that only they move."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from velollm.backends.base import Completion, RunningServer
from velollm.bench.run import Arm
from velollm.bench.workload import USERS
from velollm.errors import VeloError


def count_words(text: str) -> int:
    """A tokenizer of words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """One simulated machine: its clock and everything that was asked of it, in order."""

    clock: Clock = field(default_factory=Clock)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def arm(self, name: str, start_s: float = 2.0, **law: Any) -> Arm:
        @contextmanager
        def start() -> Iterator[RunningServer]:
            self.clock.now += start_s
            self.started.append(name)
            try:
                yield SimulatedServer(self, name, **law)
            finally:
                self.stopped.append(name)

        starter: Callable[[], AbstractContextManager[RunningServer]] = start
        return Arm(name, starter)


class SimulatedServer(RunningServer):
    """Prefill and decode at fixed rates, ``slots`` users at a time; ``pace`` slows both at the n-th request.

    ``crowds``: how many users ask together, in turn.

    ``fault`` may raise or return an error text for the n-th request (counted from 0 over the server's life).
    """

    def __init__(
        self,
        world: World,
        name: str,
        *,
        prefill: float = 100.0,
        decode: float = 40.0,
        slots: int = 1,
        pace: Callable[[int], float] = lambda _: 1.0,
        fault: Callable[[int], str | None] = lambda _: None,
        engine_tells: bool = True,
        cached_tokens: int = 0,
        pids: tuple[int, ...] = (),
        crowds: tuple[int, ...] = (USERS,),
    ) -> None:
        self.url = f"http://127.0.0.1/{name}"
        self.world, self.name = world, name
        self.prefill, self.decode, self.slots = prefill, decode, slots
        self.pace, self.fault = pace, fault
        self.engine_tells, self.cached_tokens = engine_tells, cached_tokens
        self.requests = 0
        self._pids = pids
        self.crowds, self._crowds_served = crowds, 0
        self._together: dict[str, tuple[str, int, float, float | None]] = {}
        self._answers: dict[str, Completion] = {}
        self._gathered = threading.Condition()

    def count_tokens(self, text: str) -> int:
        return count_words(text)

    def wait(self) -> int | None:
        return None

    def pids(self) -> tuple[int, ...]:
        return self._pids

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int,
        seed: int,
        deadline_s: float,
        decode_limit_s: float | None = None,
        ignore_eos: bool = True,
        schema: Mapping[str, object] | None = None,
    ) -> Completion:
        if threading.current_thread() is not threading.main_thread():
            return self._complete_with_others(prompt, max_tokens, deadline_s, decode_limit_s)
        answer, busy_s = self._serve(prompt, max_tokens, deadline_s, decode_limit_s, 0.0)
        self.world.clock.now += busy_s
        if answer.error == "deadline":
            raise VeloError("no token in time", "wait longer")
        return answer

    def _complete_with_others(
        self, prompt: str, max_tokens: int, deadline_s: float, limit_s: float | None
    ) -> Completion:
        # The last of the users serves all of them in order, so the outcome does not hang on the threads' timing.
        with self._gathered:
            self._together[prompt] = (prompt, max_tokens, deadline_s, limit_s)
            if len(self._together) == self.crowds[self._crowds_served % len(self.crowds)]:
                self._crowds_served += 1
                free = [0.0] * self.slots
                for name, (text, tokens, deadline, limit) in sorted(self._together.items()):
                    slot = free.index(min(free))
                    self._answers[name], free[slot] = self._serve(text, tokens, deadline, limit, free[slot])
                self.world.clock.now += max(free)
                self._together.clear()
                self._gathered.notify_all()
            assert self._gathered.wait_for(lambda: prompt in self._answers, timeout=10)
            answer = self._answers.pop(prompt)
        if answer.error == "deadline":
            raise VeloError("no token in time", "wait longer")
        return answer

    def _serve(
        self, prompt: str, max_tokens: int, deadline_s: float, limit_s: float | None, begin_s: float
    ) -> tuple[Completion, float]:
        """The answer to one request that a slot takes up at ``begin_s``, and when that slot is free again."""
        number, self.requests = self.requests, self.requests + 1
        self.world.asked.append((self.name, prompt, max_tokens))
        if (error := self.fault(number)) is not None:
            return Completion((), "error", error=error), begin_s + 0.01
        pace = self.pace(number)
        tokens = count_words(prompt) - self.cached_tokens
        prompt_s = tokens / (self.prefill * pace)
        first_s = begin_s + prompt_s
        if first_s > deadline_s:
            return Completion((), "error", error="deadline"), deadline_s
        gap_s = 1 / (self.decode * pace)
        times = [first_s + place * gap_s for place in range(max_tokens)]
        seen = [t for t in times if limit_s is None or t - first_s <= limit_s]
        events = tuple((t, place + 1) for place, t in enumerate(seen))
        cut = len(seen) < max_tokens
        return (
            Completion(
                events,
                "time" if cut else "length",
                fresh_prompt_tokens=tokens if self.engine_tells else None,
                cached_prompt_tokens=self.cached_tokens if self.engine_tells else None,
                prompt_s=prompt_s if self.engine_tells else None,
            ),
            # The token in the making is finished before the slot is free.
            times[len(seen)] if cut else seen[-1],
        )
