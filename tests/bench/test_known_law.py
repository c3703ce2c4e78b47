"""A real server of known law, in a process of its own: what goes in comes back.

Only orders and bounds that hold on a busy machine are asked for here; how near the figures come is measured by
`benchmarks/clock.py` on a quiet one, and stated in `docs/measuring.md`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from velollm.backends.openai_http import OpenAiServer
from velollm.bench.exchange import Request, ask, ask_together
from velollm.bench.samples import crowd_figures, single_figures
from velollm.bench.sizes import Answer

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "known_server.py"
TTFT_S, ITL_S, TOKENS = 0.05, 0.01, 20


@contextmanager
def known_server() -> Iterator[OpenAiServer]:
    argv = [sys.executable, str(SCRIPT), str(TTFT_S), str(ITL_S)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with closing(OpenAiServer(process.stdout.readline().strip(), "known")) as server:
            yield server
        process.stdin.close()


def test_one_stream_is_never_faster_than_the_law() -> None:
    with known_server() as server:
        found = single_figures(ask(server, Request("Well?", 1, 0), Answer(TOKENS, 30.0), 30.0), None)
    assert found.error is None
    assert found.answer_tokens == TOKENS
    assert found.ttft_s is not None
    assert found.ttft_s >= TTFT_S
    assert found.answer_s is not None
    assert found.answer_s >= TTFT_S + (TOKENS - 1) * ITL_S
    assert found.decode_tokens_per_s == pytest.approx((TOKENS - 1) / (found.answer_s - found.ttft_s))


def test_64_streams_come_back_whole_and_side_by_side() -> None:
    with known_server() as server:
        requests = [Request(f"stream {number}", 2, number) for number in range(64)]
        answers = ask_together(server, requests, Answer(TOKENS, 30.0), 30.0)
    figures = crowd_figures(answers)
    assert figures.error is None
    assert figures.tokens == 64 * TOKENS
    assert all(answer.events[0][0] >= TTFT_S for answer in answers)
    assert figures.wall_s is not None
    # One after another they would take so long.
    assert figures.wall_s < 64 * (TTFT_S + (TOKENS - 1) * ITL_S)
