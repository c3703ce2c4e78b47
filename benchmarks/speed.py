r"""Measure decode and prefill of made models of five sizes with llama-bench, beside what the arithmetic takes as input.

    OPENBLAS_NUM_THREADS=1 python benchmarks/speed.py --threads 1 \
        --llama-bench PATH --models DIR -o benchmarks/results/speed/NAME.json
    python benchmarks/speed.py --show benchmarks/results/speed/NAME.json

The machine must do nothing else meanwhile. Everything that was measured is kept as it came, one entry a model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from velollm.facts import Facts
from velollm.models.reads import estimate_token_cost
from velollm.models.speed import Rate, cpu_speed, estimate_decode, estimate_ttft
from velollm.models.synthetic import Shape, ensure_model, made_model_facts
from velollm.probe.machine import probe_machine
from velollm.probe.speedtest import measure_machine_speed

SHAPES = (
    Shape("speed-0.1b", 12, 768, 12, 4, 2048, 32000, 32768),
    Shape("speed-0.3b", 20, 1024, 16, 4, 2816, 32000, 32768),
    Shape("speed-0.6b", 24, 1408, 11, 11, 3840, 32000, 32768),
    Shape("speed-1.1b", 22, 2048, 32, 4, 5632, 32000, 32768),
    Shape("speed-2b", 24, 2560, 20, 4, 8192, 32000, 32768),
)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--llama-bench", type=Path)
    words.add_argument("--models", type=Path)
    words.add_argument("--show", type=Path, help="only print estimated and measured of a results file")
    words.add_argument("--only", help="one shape by name")
    words.add_argument("--threads", type=int, help="threads of the engine and to read with (default: usable cores)")
    words.add_argument("--make", action="store_true", help="only make the models")
    words.add_argument("-o", "--output", type=Path)
    asked = words.parse_args()
    if asked.show:
        show(json.loads(asked.show.read_text(encoding="utf-8")))
        return
    shapes = [shape for shape in SHAPES if asked.only in (None, shape.name)]
    paths = [ensure_model(shape, asked.models) for shape in shapes]
    if asked.make:
        return
    facts = probe_machine(sample_s=0)
    threads = asked.threads or (facts.cpu.usable_physical_cores if facts.cpu else None) or 1
    rows = []
    for shape, path in zip(shapes, paths, strict=True):
        command = [str(asked.llama_bench), "-m", str(path), "-p", "64", "-n", "24", "-r", "5", "-t", str(threads),
                   "-mmp", "0", "-o", "json"]  # fmt: skip
        before = measure_machine_speed(facts, threads=threads)
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        after = measure_machine_speed(facts, threads=threads)
        machine = [speed.model_dump() for speed in (before, after) if speed is not None]
        rows.append({"shape": vars(shape), "command": command[1:], "machine": machine, "runs": json.loads(done.stdout)})
    document = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": facts.cpu.model_name if facts.cpu else None,
        "models": rows,
    }
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def show(document: dict) -> None:
    """Estimated and measured, and their ratio; of samples and rates the best, as the least disturbed."""
    print("| model | decode estimated | measured | ratio | prefill estimated | measured | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in document["models"]:
        model = made_model_facts(Shape(**row["shape"]))
        best = {key: max(speed[key] for speed in row["machine"]) for key in ("read_bytes_per_s", "multiply_flops")}
        rates = [Rate(best[key], "measured", "here") for key in ("read_bytes_per_s", "multiply_flops")]
        cpu = cpu_speed(Facts(), *rates)
        cost = estimate_token_cost(model, depth_tokens=256, knobs={})
        decode = estimate_decode([(cpu, cost.read_bytes)], sparse=False)
        ttft = estimate_ttft(64, [(cpu, cost.prompt_operations)], decode)
        measured = {run["n_gen"] > 0: max(run["samples_ts"]) for run in row["runs"]}
        prefill = 64 / (ttft.value - 1 / decode.value)
        print(
            f"| {row['shape']['name']} | {decode.value:.1f} | {measured[True]:.1f} | {decode.value / measured[True]:.2f} "
            f"| {prefill:.0f} | {measured[False]:.0f} | {prefill / measured[False]:.2f} |"
        )


if __name__ == "__main__":
    main()
