"""One request, or four at the same moment, to a running server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from velollm.backends.base import Completion, RunningServer
from velollm.bench.sizes import Answer
from velollm.bench.workload import PROMPTS_PER_ROUND, Workload, load_workload, make_follow_up, make_prompt
from velollm.errors import VeloError

_FILLER_ROUND = -2


@dataclass(frozen=True)
class Request:
    """A prompt with the ``tokens`` that the model's tokenizer counts in it, and the seed of its answer."""

    prompt: str
    tokens: int
    seed: int
    schema: Mapping[str, object] | None = None


class RequestBook:
    """The requests of a comparison: every arm of a round gets the same ones."""

    def __init__(self, workload: Workload, seed: int, depth_tokens: int = 0) -> None:
        self._workload = workload
        self._seed = seed
        self._depth_tokens = depth_tokens
        self._filler: str | None = None
        self._mix = [load_workload(name) for name in workload.mix]
        self._requests: dict[tuple[int, int, int], Request] = {}

    def request(self, server: RunningServer, round_index: int, index: int, target_tokens: int) -> Request:
        """The request of one user in one round, made with the tokenizer of the server that comes first to it."""
        key = (round_index, index, target_tokens)
        if key not in self._requests:
            count = server.count_tokens
            workload = self._mix[(index - 1) % len(self._mix)] if index > 0 and self._mix else self._workload
            prompt = make_prompt(workload, round_index, index, target_tokens, count, seed=self._seed)
            tokens = count(prompt)
            # The filler is read once, before the first round, so a prompt's own tokens are all that is new.
            prompt = (self.filler(server) if round_index >= 0 else "") + prompt
            number = (round_index + 2) * PROMPTS_PER_ROUND + index
            self._requests[key] = Request(prompt, tokens, self._seed * 100_003 + number, workload.json_schema)
        return self._requests[key]

    def next_turn(self, before: Request, answer: str, round_index: int, turn: int) -> Request:
        """The request that goes on with a conversation: all that was said, and what the user says next."""
        said = make_follow_up(self._workload, round_index, turn, seed=self._seed)
        text = f"{before.prompt}{answer}\n\n{said}"
        return Request(text, before.tokens, before.seed + turn, before.schema)

    def delays_s(self, round_index: int, users: int) -> list[float]:
        """When each of several users asks, in seconds after the first: all at once, or as a Poisson process."""
        mean_s = self._workload.arrival_s
        if not mean_s:
            return [0.0] * users
        draw = random.Random(f"{self._seed}/{round_index}/{users}")
        return [0.0, *accumulate(draw.expovariate(1 / mean_s) for _ in range(users - 1))]

    def filler(self, server: RunningServer) -> str:
        """The text before every prompt, the same for all: what a long conversation has left in the cache."""
        if self._filler is None:
            count, depth = server.count_tokens, self._depth_tokens
            text = make_prompt(self._workload, _FILLER_ROUND, 0, depth, count, seed=self._seed) if depth else ""
            self._filler = f"{text}\n\n" if text else ""
        return self._filler


def ask(server: RunningServer, request: Request, answer: Answer, deadline_s: float) -> Completion:
    """One answer; a failure comes back as a completion that ended in an error."""
    try:
        return server.complete(
            request.prompt,
            max_tokens=answer.tokens,
            seed=request.seed,
            deadline_s=deadline_s,
            decode_limit_s=answer.limit_s,
            schema=request.schema,
        )
    except VeloError as error:
        return Completion((), "error", error=error.message)


def ask_together(
    server: RunningServer,
    requests: Sequence[Request],
    answer: Answer,
    deadline_s: float,
    delays_s: Sequence[float] = (),
) -> tuple[Completion, ...]:
    """The answers to requests that are all sent at the same moment, or ``delays_s`` after it, each from its thread."""
    start = threading.Barrier(len(requests))
    answers: list[Completion | BaseException] = [Completion((), "error")] * len(requests)

    def user(place: int) -> None:
        try:
            start.wait()
            if delays_s and delays_s[place] > 0:
                time.sleep(delays_s[place])
            answers[place] = ask(server, requests[place], answer, deadline_s)
        except BaseException as error:
            answers[place] = error

    # Daemon threads: Ctrl-C need not wait for them, and they end when their server is stopped.
    threads = [threading.Thread(target=user, args=(place,), daemon=True) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tuple(_raise_or_return(found) for found in answers)


def settle(server: RunningServer, deadline_s: float) -> None:
    """Wait until the server is done with an answer whose reader has left, by queueing one token behind it."""
    ask(server, Request("Done?", 1, 0), Answer(1, deadline_s), deadline_s)


def _raise_or_return(found: Completion | BaseException) -> Completion:
    if isinstance(found, BaseException):
        raise found
    return found
