"""Default against default, many times: how often is a difference claimed where there is none?

    python benchmarks/false_verdicts.py FILE [RUNS]

Each run is one comparison as `velollm bench` makes it (a control, servers of its own, the embedded engine, a small made
model), but of the default against itself. Runs are added to those in FILE, so that they can be spread over quiet times.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from velollm.backends.base import ModelRef
from velollm.backends.embedded import EmbeddedBackend
from velollm.bench.design import Design
from velollm.bench.run import Arm, Budget, run_bench
from velollm.bench.workload import load_workload
from velollm.models.synthetic import TINY, ensure_model
from velollm.probe.machine import probe_machine

METRICS = ("ttft", "prefill", "decode")
ROUNDS = 10


def main() -> None:
    path, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    found = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    facts, backend, workload = probe_machine(), EmbeddedBackend(), load_workload("chat")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        model = ModelRef(TINY.name, ensure_model(TINY, directory))
        knobs = {**backend.default_knobs(facts), "context_tokens": 2048}

        def arm(name: str) -> Arm:
            return Arm(name, lambda: backend.trial(model, knobs, facts, log=directory / f"{name}.log"))

        for _ in range(runs):
            result = run_bench(
                [arm("default"), arm("tuned")],
                workload,
                Budget(60.0),
                design=Design(levels=(), control=True, rounds=ROUNDS),
                context_tokens=2048,
                seed=len(found),
            )
            ratios = {metric: asdict(result.ratios[metric]) for metric in METRICS}
            spreads = {metric: result.summary("default")[metric].spread for metric in METRICS}
            found.append({"ratios": ratios, "spreads": spreads, "elapsed_s": round(result.elapsed_s, 2)})
            path.write_text(json.dumps({"rounds": ROUNDS, "runs": found}, indent=1) + "\n", encoding="utf-8")
    for metric in METRICS:
        false = sum(run["ratios"][metric]["verdict"] != "no difference" for run in found)
        print(f"{metric}: {false} of {len(found)} runs claim a difference", flush=True)


if __name__ == "__main__":
    main()
