"""How long a command takes from its start to its end, with compiled modules and without.

    python benchmarks/startup.py MODEL.gguf [FILE]

Commands take turns, and so do the two ways: `pip install` compiles all modules; a source tree whose shell sets
PYTHONDONTWRITEBYTECODE compiles ours anew at each start. Other packages are compiled in both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROUNDS = 15


def run_s(argv: list[str], environ: dict[str, str]) -> float:
    """Seconds of one run."""
    began_s = time.perf_counter()
    subprocess.run(argv, env=environ, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began_s


def main() -> None:
    model = sys.argv[1]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "velollm --help": [sys.executable, "-m", "velollm", "--help"],
        "velollm estimate FILE --json": [sys.executable, "-m", "velollm", "estimate", model, "--json"],
        "velollm estimate FILE": [sys.executable, "-m", "velollm", "estimate", model],
        "velollm estimate llama3.1:8b": [sys.executable, "-m", "velollm", "estimate", "llama3.1:8b"],
    }
    with tempfile.TemporaryDirectory() as place:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        own["VELOLLM_HOME"] = f"{place}/home"
        ways = {
            "compiled": own | {"PYTHONPYCACHEPREFIX": f"{place}/compiled"},
            "not compiled": own | {"PYTHONDONTWRITEBYTECODE": "1"},
        }
        for argv in commands.values():
            run_s(argv, ways["compiled"])
        taken: dict[tuple[str, str], list[float]] = {(name, way): [] for name in commands for way in ways}
        for _ in range(ROUNDS):
            for name, way in taken:
                taken[name, way].append(run_s(commands[name], ways[way]))
    found = {
        "python": platform.python_version(),
        "typer": version("typer"),
        "processor": next(
            (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
        ),
        "rounds": ROUNDS,
        "wall_s": {
            way: {
                name: {"median": round(statistics.median(times), 4), "all": [round(value, 4) for value in times]}
                for (name, of), times in taken.items()
                if of == way
            }
            for way in ways
        },
    }
    for way, rows in found["wall_s"].items():  # type: ignore[attr-defined]
        for name, row in rows.items():
            print(f"{way:14s}{name:32s}{row['median']:.3f} s  ({min(row['all']):.3f} to {max(row['all']):.3f})")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
