from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from tests.bench.simulated import SimulatedServer, World
from velollm.backends.base import Completion, RunningServer
from velollm.bench.exchange import Request, RequestBook, ask, ask_together
from velollm.bench.sizes import Answer
from velollm.bench.workload import load_workload
from velollm.errors import VeloError

ANSWER = Answer(4, 6.0)
REQUESTS = [Request(f"prompt {n}", 2, n) for n in range(4)]


class Gate(RunningServer):
    """Answers only when all four users have asked, so that asking one after another would never end."""

    url = "http://127.0.0.1/gate"

    def __init__(self, error: BaseException | None = None) -> None:
        self.all_here = threading.Barrier(4, timeout=5)
        self.error = error
        self.seeds: set[int] = set()

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
        self.all_here.wait()
        self.seeds.add(seed)
        if self.error and prompt.endswith("2"):
            raise self.error
        return Completion(((0.1, max_tokens),), "length", text=prompt)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def wait(self) -> int | None:
        return None

    def pids(self) -> tuple[int, ...]:
        return ()


def test_users_ask_at_the_same_time_and_get_their_own_answers() -> None:
    gate = Gate()
    answers = ask_together(gate, REQUESTS, ANSWER, 5.0)
    assert [answer.text for answer in answers] == [request.prompt for request in REQUESTS]
    assert gate.seeds == {0, 1, 2, 3}


def test_one_failed_user_is_a_failed_completion() -> None:
    answers = ask_together(Gate(VeloError("queue full", "wait")), REQUESTS, ANSWER, 5.0)
    assert [answer.finish for answer in answers] == ["length", "length", "error", "length"]
    assert answers[2].error == "queue full"


def test_a_fault_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ask_together(Gate(ZeroDivisionError()), REQUESTS, ANSWER, 5.0)


def test_a_refused_request_is_a_failed_completion() -> None:
    server = SimulatedServer(World(), "default", prefill=0.1)
    answer = ask(server, Request("a long way to go", 5, 0), ANSWER, 2.0)
    assert (answer.finish, answer.error) == ("error", "no token in time")


def test_requests_of_a_round_are_made_once() -> None:
    book = RequestBook(load_workload("chat"), seed=0)
    first, second = SimulatedServer(World(), "default"), SimulatedServer(World(), "tuned")
    assert book.request(first, 0, 0, 64) is book.request(second, 0, 0, 64)
    others = {book.request(first, place, user, 64).seed for place in range(6) for user in range(5)}
    assert len(others) == 30
    assert book.request(first, 2, 0, 64).tokens == first.count_tokens(book.request(first, 2, 0, 64).prompt)
