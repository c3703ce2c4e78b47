"""How much of a figure is the harness's own: a server of known law, measured as `velollm bench` measures any other.

    python benchmarks/clock.py [FILE]

For each law and number of streams: what went in, what came back, and the difference. Writes JSON to FILE. Run it on a
machine with nothing else to do; with many streams the server is a program in Python too and takes its share.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

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


def measure(law: tuple[float, float, float], streams: int, tries: int, tokens: int = TOKENS) -> dict[str, object]:
    """One law with so many streams at once: medians over all answers, beside the truth."""
    answers: list[Completion] = []
    totals: list[float] = []
    with known_server(*law) as url, closing(OpenAiServer(url, "known")) as server:
        for number in range(tries + 1):
            requests = [Request(f"prompt {number} of stream {stream}", 8, stream) for stream in range(streams)]
            found = ask_together(server, requests, Answer(tokens, 60.0), 60.0)
            if number == 0:
                continue  # connections are made with the first
            answers += found
            totals.append(crowd_figures(found).tokens_per_s or 0.0)
    figures = [single_figures(answer, None) for answer in answers]
    ttft_s, itl_s, uneven = law
    span_s = itl_s * (tokens - 1) + (itl_s * uneven if tokens % 2 == 0 else 0.0)
    truth = {
        "ttft_s": ttft_s,
        "itl_p50_s": itl_s * (1 + uneven) if uneven else itl_s,
        "decode_tokens_per_s": (tokens - 1) / span_s,
        "total_tokens_per_s": streams * tokens / (ttft_s + span_s),
    }
    seen = {name: median(getattr(f, name) for f in figures) for name in truth if name != "total_tokens_per_s"}
    seen["total_tokens_per_s"] = median(totals)
    return {
        "ttft_s": ttft_s,
        "itl_s": itl_s,
        "uneven": uneven,
        "streams": streams,
        "answers": len(answers),
        "truth": truth,
        "seen": seen,
        "off_share": {name: seen[name] / truth[name] - 1 for name in truth},
        "off_ttft_ms": (seen["ttft_s"] - ttft_s) * 1000,
    }


def main() -> None:
    found = []
    for law in LAWS:
        for streams in STREAMS:
            row = measure(law, streams, TRIES if streams < 16 else 4)
            off = row["off_share"]
            assert isinstance(off, dict)
            print(
                f"ttft {law[0] * 1000:5.0f} ms  itl {law[1] * 1000:4.0f} ms  {streams:3} streams: "
                f"ttft {row['off_ttft_ms']:+.3f} ms, "
                + ", ".join(f"{name.rsplit('_', 1)[0]} {share:+.3%}" for name, share in off.items()),
                flush=True,
            )
            found.append(row)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"tokens": TOKENS, "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
