"""Record what the same settings differ by on this machine: one server, asked the same again and again.

    python benchmarks/record_noise.py FILE [ROUNDS]

Writes the raw samples of three arms that are all the engine's default on a small made model (embedded engine), as
`velollm bench` takes them, one process each. `benchmarks/power.py` draws its noise from them.
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

ARMS = ("default", "default-control", "tuned")


def main() -> None:
    path, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    facts, backend = probe_machine(), EmbeddedBackend()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        model = ModelRef(TINY.name, ensure_model(TINY, directory))
        knobs = {**backend.default_knobs(facts), "context_tokens": 2048}

        def arm(name: str) -> Arm:
            return Arm(name, lambda: backend.trial(model, knobs, facts, log=directory / f"{name}.log"))

        result = run_bench(
            [arm(name) for name in ARMS],
            load_workload("chat"),
            Budget(170.0),
            design=Design(levels=(), rounds=rounds),
            context_tokens=2048,
        )
    cpu = facts.cpu
    document = {
        "what": "three servers with the same settings, embedded engine, a small made model",
        "processor": cpu.model_name if cpu else None,
        "cores": cpu.usable_cores if cpu else None,
        "notes": list(result.notes),
        "runs": [asdict(sample) for sample in result.runs],
    }
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    for arm_name in ARMS:
        summary = result.summary(arm_name)
        print(arm_name, {metric: summary[metric] for metric in ("ttft", "decode", "prefill")})


if __name__ == "__main__":
    main()
