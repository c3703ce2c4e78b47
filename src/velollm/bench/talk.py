"""A conversation of several turns, and what else may go on at the machine meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

from velollm.backends.base import Completion, RunningServer
from velollm.bench.exchange import Request, RequestBook, ask
from velollm.bench.samples import SingleFigures, itl_percentiles, single_figures
from velollm.bench.sizes import Answer
from velollm.bench.workload import Workload

_TITLE_ANSWER = Answer(12, 6.0)
_TITLE_TOKENS = 96
_TITLE_USER = 40
# One core, until its standard input closes, which it does even when we are killed.
_BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
while True:
    pass
"""


def talk(
    server: RunningServer, book: RequestBook, first: Request, answer: Answer, deadline_s: float, place: tuple[int, int]
) -> list[Completion]:
    """The answers of a conversation; ``place``: the round, and how many turns. It ends at the first that fails."""
    round_index, turns = place
    request, answers = first, [ask(server, first, answer, deadline_s)]
    for turn in range(2, turns + 1):
        if answers[-1].finish in ("error", "time") or not answers[-1].events:
            break
        request = book.next_turn(request, answers[-1].text, round_index, turn)
        answers.append(ask(server, request, answer, deadline_s))
    return answers


def talk_figures(answers: Sequence[Completion], first_tokens: int) -> SingleFigures:
    """The figures of a conversation. TTFT and prefill are the first turn's, as the later ones find its text cached.

    Their own TTFT (median) is that of a cached prompt. Decode and time between tokens are over all turns, and the whole
    turn is the median one.
    """
    figures = single_figures(answers[0], first_tokens)
    failed = next((a for a in answers if a.finish == "error" or not a.events), None)
    if figures.error or failed is not None:
        return SingleFigures(error=figures.error or (failed.error if failed else None) or "no token came")
    if len(answers) == 1:
        return figures
    spans = [(a.events[-1][1] - a.events[0][1], a.events[-1][0] - a.events[0][0]) for a in answers]
    tokens, seconds = sum(n for n, _ in spans), sum(s for _, s in spans)
    p50_s, p95_s, p99_s = itl_percentiles(*answers)
    return replace(
        figures,
        cached_ttft_s=median(a.events[0][0] for a in answers[1:]),
        decode_tokens_per_s=tokens / seconds if tokens and seconds > 0 else None,
        answer_tokens=sum(a.events[-1][1] for a in answers),
        answer_s=sum(a.events[-1][0] for a in answers),
        turn_s=median(a.events[-1][0] for a in answers),
        drafted_tokens=_sum([a.drafted_tokens for a in answers]),
        accepted_tokens=_sum([a.accepted_tokens for a in answers]),
        itl_p50_s=p50_s,
        itl_p95_s=p95_s,
        itl_p99_s=p99_s,
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


@contextmanager
def company(workload: Workload, server: RunningServer, book: RequestBook, round_index: int) -> Iterator[None]:
    """What the workload wants to go on beside the user: titles made on the same server, or a busy process."""
    if workload.beside == "busy process":
        with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE) as process:
            try:
                yield
            finally:
                process.kill()
        return
    if workload.beside is None:
        yield
        return
    over = threading.Event()

    def make_titles() -> None:
        user = _TITLE_USER
        while not over.is_set():
            request = book.request(server, round_index, user, _TITLE_TOKENS)
            if ask(server, request, _TITLE_ANSWER, _TITLE_ANSWER.limit_s * 5).finish == "error":
                return
            user += 1

    thread = threading.Thread(target=make_titles, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
