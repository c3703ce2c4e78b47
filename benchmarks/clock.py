"""How much of a figure is the harness's own: a server of known law, measured as `velollm bench` measures any other.

    python benchmarks/clock.py [FILE]

For each law and number of streams: when the server's tokens really left, what the harness made of them, and the
difference. Writes JSON to FILE. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx

from velollm.backends.base import Completion
from velollm.backends.openai_http import OpenAiServer
from velollm.bench.exchange import Request, ask_together
from velollm.bench.samples import crowd_figures, single_figures
from velollm.bench.sizes import Answer

HERE = Path(__file__).resolve().parent
LAWS = ((0.050, 0.010, 0.0), (0.200, 0.025, 0.0), (0.034, 0.002, 0.0), (0.500, 0.030, 0.3))
STREAMS = (1, 4, 16, 64)
TOKENS = 40
TRIES = 10


@contextmanager
def known_server(ttft_s: float, itl_s: float, uneven: float = 0.0) -> Iterator[str]:
    """A server of that law in a process of its own; its address."""
    argv = [sys.executable, str(HERE / "known_server.py"), str(ttft_s), str(itl_s), str(uneven)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait()


class SendClock:
    """The clock of the harness, which keeps when each thread last sent a request: the first time it was read for it."""

    def __init__(self) -> None:
        self.sent_s = threading.local()

    def __call__(self) -> float:
        now_s = time.perf_counter()
        if not hasattr(self.sent_s, "first"):
            self.sent_s.first = now_s
        return now_s


def measure(law: tuple[float, float, float], streams: int, tries: int, tokens: int = TOKENS) -> dict[str, Any]:
    """One law with so many streams at once: medians over all answers, beside when the server's tokens really left."""
    seen: list[Figures] = []
    truth: list[Figures] = []
    sent: dict[str, float] = {}
    clock = SendClock()

    class Server(OpenAiServer):
        def complete(self, prompt: str, **settings: Any) -> Completion:
            answer = super().complete(prompt, **settings)
            sent[prompt] = clock.sent_s.first
            return answer

    totals: list[float] = []
    true_totals: list[float] = []
    with known_server(*law) as url, closing(Server(url, "known", clock=clock)) as server:
        for number in range(tries):
            requests = [Request(f"prompt {number} of stream {stream}", 8, stream) for stream in range(streams)]
            answers = ask_together(server, requests, Answer(tokens, 60.0), 60.0)
            left = httpx.get(f"{url}/times", trust_env=False).json()
            seen += [figures_of(answer) for answer in answers]
            totals.append(crowd_figures(answers).tokens_per_s or 0.0)
            trues = []
            for request in requests:
                times = left[request.prompt]
                events = tuple((at - sent[request.prompt], place + 1) for place, at in enumerate(times))
                trues.append(Completion(events, "length"))
            truth += [figures_of(answer) for answer in trues]
            true_totals.append(crowd_figures(trues).tokens_per_s or 0.0)
    names = Figures._fields
    middle = {name: median(getattr(f, name) for f in seen) for name in names}
    true = {name: median(getattr(f, name) for f in truth) for name in names}
    off_ms = sorted((a.ttft_s - b.ttft_s) * 1000 for a, b in zip(seen, truth, strict=True))
    return {
        "ttft_s": law[0],
        "itl_s": law[1],
        "uneven": law[2],
        "streams": streams,
        "answers": len(seen),
        "truth": {**true, "total_tokens_per_s": median(true_totals)},
        "seen": {**middle, "total_tokens_per_s": median(totals)},
        "off_share": {
            **{name: middle[name] / true[name] - 1 for name in names},
            "total_tokens_per_s": median(totals) / median(true_totals) - 1,
        },
        "off_ttft_ms": median(off_ms),
        "off_ttft_p95_ms": off_ms[int(len(off_ms) * 0.95)],
        "server_late_ms": (true["ttft_s"] - law[0]) * 1000,
    }


class Figures(NamedTuple):
    ttft_s: float
    itl_p50_s: float
    itl_p95_s: float
    decode_tokens_per_s: float


def figures_of(answer: Completion) -> Figures:
    found = single_figures(answer, None)
    return Figures(*(getattr(found, name) for name in Figures._fields))


def main() -> None:
    found = []
    for law in LAWS:
        for streams in STREAMS:
            row = measure(law, streams, TRIES if streams < 16 else 4)
            off = row["off_share"]
            print(
                f"ttft {law[0] * 1000:5.0f} ms  itl {law[1] * 1000:4.0f} ms  {streams:3} streams: "
                f"ttft {row['off_ttft_ms']:+.3f} ms (p95 {row['off_ttft_p95_ms']:+.3f}), "
                + ", ".join(f"{name.rsplit('_', 1)[0]} {share:+.3%}" for name, share in off.items()),
                flush=True,
            )
            found.append(row)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"tokens": TOKENS, "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
