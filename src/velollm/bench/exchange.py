"""One request, or four at the same moment, to a running server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from velollm.backends.base import Completion, RunningServer
from velollm.bench.sizes import Answer
from velollm.bench.workload import PROMPTS_PER_ROUND, Workload, make_prompt
from velollm.errors import VeloError


@dataclass(frozen=True)
class Request:
    """A prompt with the ``tokens`` that the model's tokenizer counts in it, and the seed of its answer."""

    prompt: str
    tokens: int
    seed: int


class RequestBook:
    """The requests of a comparison: every arm of a round gets the same ones."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._seed = seed
        self._requests: dict[tuple[int, int, int], Request] = {}

    def request(self, server: RunningServer, round_index: int, index: int, target_tokens: int) -> Request:
        """The request of one user in one round, made with the tokenizer of the server that comes first to it."""
        key = (round_index, index, target_tokens)
        if key not in self._requests:
            count = server.count_tokens
            prompt = make_prompt(self._workload, round_index, index, target_tokens, count, seed=self._seed)
            number = (round_index + 2) * PROMPTS_PER_ROUND + index
            self._requests[key] = Request(prompt, count(prompt), self._seed * 100_003 + number)
        return self._requests[key]


def ask(server: RunningServer, request: Request, answer: Answer, deadline_s: float) -> Completion:
    """One answer; a failure comes back as a completion that ended in an error."""
    try:
        return server.complete(
            request.prompt,
            max_tokens=answer.tokens,
            seed=request.seed,
            deadline_s=deadline_s,
            decode_limit_s=answer.limit_s,
        )
    except VeloError as error:
        return Completion((), "error", error=error.message)


def ask_together(
    server: RunningServer, requests: Sequence[Request], answer: Answer, deadline_s: float
) -> tuple[Completion, ...]:
    """The answers to requests that are all sent at the same moment, each from a thread of its own."""
    start = threading.Barrier(len(requests))
    answers: list[Completion | BaseException] = [Completion((), "error")] * len(requests)

    def user(place: int) -> None:
        try:
            start.wait()
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
