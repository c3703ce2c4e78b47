"""Results in the text format of Go's benchmarks, which `benchstat` reads: one line for each raw sample.

Format: https://go.dev/design/14313-benchmark-format, and golang.org/x/perf/benchfmt for the lines that tell of units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from velollm.bench.history import Record
from velollm.bench.samples import Sample

# Field of a sample, and the unit that stands behind its value; benchstat knows `sec` and `B` and scales them.
_SINGLE = (
    ("ttft_s", "ttft-sec"),
    ("answer_ttft_s", "answer-ttft-sec"),
    ("cached_ttft_s", "cached-ttft-sec"),
    ("prefill_tokens_per_s", "prefill-tok/s"),
    ("decode_tokens_per_s", "decode-tok/s"),
    ("itl_p50_s", "itl-p50-sec"),
    ("itl_p95_s", "itl-p95-sec"),
    ("itl_p99_s", "itl-p99-sec"),
    ("turn_s", "turn-sec"),
    ("peak_memory_bytes", "peak-B"),
    ("gpu_memory_bytes", "vram-B"),
    ("energy_j", "joules"),
)
_CROWD = (("tokens_per_s", "total-tok/s"), ("worst_ttft_s", "worst-ttft-sec"), ("fairness", "fairness"))
_MORE_IS_BETTER = ("prefill-tok/s", "decode-tok/s", "total-tok/s", "fairness")
_NO_WORD = re.compile(r"[^A-Za-z0-9._-]+")


def render_benchstat(records: Sequence[Record]) -> str:
    """All samples. What benchstat must not split its tables by (version, time, machine) stands in lines that it skips.

    Compare arms with ``benchstat -col /arm FILE``, and two results with ``benchstat OLD NEW``.
    """
    lines = [f"Unit {unit} better={_better(unit)}" for _, unit in (*_SINGLE, *_CROWD)]
    for record in records:
        lines += [
            "",
            f"VeloLLM result {record.id}, taken at {record.taken_at}",
            f"Engine {record.backend} {record.engine_version or 'of an unknown version'}",
            f"Machine {record.machine or 'unknown'}",
            f"engine: {record.backend}",
            f"model: {_word(record.model.rpartition('/')[2])}",
            *(line for sample in record.samples for line in _lines(record, sample)),
        ]
    return "\n".join(lines) + "\n"


def _better(unit: str) -> str:
    return "higher" if unit in _MORE_IS_BETTER else "lower"


def _lines(record: Record, sample: Sample) -> Iterator[str]:
    name = f"Benchmark{_title(record.workload)}/arm={_word(sample.arm)}/depth={record.depth_tokens}"
    yield from _line(f"{name}/users=1", [(getattr(sample, field), unit) for field, unit in _SINGLE])
    for crowd in sample.crowds:
        yield from _line(f"{name}/users={crowd.users}", [(getattr(crowd, field), unit) for field, unit in _CROWD])


def _line(name: str, figures: Sequence[tuple[float | None, str]]) -> Iterator[str]:
    """One run; none where nothing of it is known."""
    known = [f"{_number(value)} {unit}" for value, unit in figures if value is not None and value > 0]
    if known:
        yield f"{name} 1 {' '.join(known)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _title(workload: str) -> str:
    """`agent-loop` to `AgentLoop`: a minus and a number at a name's end would count as one of processors."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", workload) if word]
    return "".join(word[:1].upper() + word[1:] for word in words) or "Workload"


def _word(text: str) -> str:
    """Without spaces and slashes, which have a meaning there."""
    return _NO_WORD.sub("_", text) or "_"
