"""Speed from arithmetic: decode by memory bandwidth, time to first token by compute (the roofline of each device).

A token is decoded by reading its weights and the cache once, device after device; a prompt is taken in by multiplying.
No device reaches its full rate: the share that a kind of backend does reach comes from reports
(`configs/speed-reports.yaml`), for a processor from measurements against made models (`docs/recommend.md`). A number
that is missing makes the estimate None, never a guess.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from velollm.facts import Facts, Frozen, GpuFacts
from velollm.models.accelerators import (
    Accelerator,
    accelerators_named,
    load_accelerators,
    match_accelerator,
    merge_accelerators,
)
from velollm.models.catalog import find_catalog_model
from velollm.models.reads import estimate_token_cost
from velollm.models.yamlfile import load_rows

Evidence = Literal["measured", "calibrated", "arithmetic", "table"]
# From the best to the least: measured here; the roofline set right by this machine's own history; the roofline from
# this machine's measured rates; the roofline from a table's rates.
GRADES: tuple[Evidence, ...] = ("measured", "calibrated", "arithmetic", "table")
_TERA = 1e12
_REPORT_DEPTH = 512
# Shares that llama.cpp b10488 reached of what `probe.speedtest` measured, on five made models (least, median, most), on
# one core of a Xeon: benchmarks/results/speed/xeon-one-thread.json. A processor whose cores unpack weights faster than
# its memory brings them reaches more; only its own history can tell.
CPU_DECODE = (0.36, 0.38, 0.68)
CPU_PREFILL = (0.62, 0.65, 0.67)
CPU_MODELS = 5


@dataclass(frozen=True)
class Rate:
    """A rate of a device (bytes or operations a second), how well it is known, and from where."""

    per_s: float
    evidence: Evidence
    source: str


@dataclass(frozen=True)
class Share:
    """What part of a rate is reached: least, middle and most of so many ``reports``."""

    least: float
    middle: float
    most: float
    reports: int


@dataclass(frozen=True)
class DeviceSpeed:
    """One device: its rates (None: unknown) and the shares of them that its backend reaches."""

    name: str
    backend: str
    read: Rate | None
    multiply: Rate | None
    shares: Shares


@dataclass(frozen=True)
class Estimated:
    """A number with its range, its evidence, and one line that says what it rests on."""

    value: float
    low: float
    high: float
    evidence: Evidence
    basis: str

    def scaled(self, factor: float, evidence: Evidence, basis: str) -> Estimated:
        """The same number set right by a factor."""
        return replace(
            self, value=self.value * factor, low=self.low * factor, high=self.high * factor,
            evidence=evidence, basis=basis,
        )  # fmt: skip


class _Report(Frozen):
    accelerator: str
    backend: Literal["cuda", "rocm", "vulkan", "metal"]
    model: str
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    source: str
    note: str | None = None


@lru_cache(maxsize=1)
def load_reports() -> tuple[_Report, ...]:
    """The reports that ship with the program."""
    return tuple(_Report.model_validate(row) for row in load_rows("speed-reports", "reports"))


@dataclass(frozen=True)
class Shares:
    """Shares that one kind of backend reaches: of bandwidth by decode (``sparse``: with routed experts), of compute."""

    decode: Share | None = None
    sparse: Share | None = None
    prefill: Share | None = None


@lru_cache(maxsize=1)
def backend_shares() -> Mapping[str, Shares]:
    """Shares by kind of backend, from the reports; where none is of a mixture of experts, those of all backends."""
    rows = {row.id: row for row in load_accelerators()}
    values: dict[tuple[str, str], list[float]] = {}
    for report in load_reports():
        row, model = rows.get(report.accelerator), find_catalog_model(report.model)
        cost = None if model is None else estimate_token_cost(model, depth_tokens=_REPORT_DEPTH, knobs={})
        if row is None or model is None or cost is None:
            continue
        if report.decode_tokens_per_s and row.memory_bandwidth_bytes_per_s:
            share = report.decode_tokens_per_s * cost.read_bytes / row.memory_bandwidth_bytes_per_s
            kind = "sparse" if model.experts else "decode"
            values.setdefault((report.backend, kind), []).append(share)
            values.setdefault(("", kind), []).append(share)
        if report.prefill_tokens_per_s and row.fp16_tflops:
            share = report.prefill_tokens_per_s * cost.prompt_operations / (row.fp16_tflops * _TERA)
            values.setdefault((report.backend, "prefill"), []).append(share)
    everywhere = _share(values.get(("", "sparse"), []))
    return {
        backend: Shares(
            _share(values.get((backend, "decode"), [])),
            _share(values.get((backend, "sparse"), [])) or everywhere,
            _share(values.get((backend, "prefill"), [])),
        )
        for backend in dict.fromkeys(report.backend for report in load_reports())
    }


def _share(values: list[float]) -> Share | None:
    if not values:
        return None
    return Share(min(values), statistics.median(values), max(values), len(values))


def gpu_speed(gpu: GpuFacts, facts: Facts) -> DeviceSpeed:
    """Rates of a GPU: bandwidth as the description gives it, else of the table; compute of the table."""
    row = accelerator_of(gpu, facts)
    backend = _backend(gpu, row, facts.os)
    read = None
    if gpu.memory_bandwidth_bytes_per_s is not None:
        read = Rate(gpu.memory_bandwidth_bytes_per_s, "table", "the hardware description")
    elif row is not None and row.memory_bandwidth_bytes_per_s is not None:
        kind = "from memory" if row.bandwidth_is_from_memory else row.source
        read = Rate(row.memory_bandwidth_bytes_per_s, "table", f"table of accelerators, {kind}")
    multiply = None
    if row is not None and row.fp16_tflops is not None:
        multiply = Rate(row.fp16_tflops * _TERA, "table", f"table of accelerators, {row.source}")
    return DeviceSpeed(gpu.name or "GPU", backend, read, multiply, backend_shares().get(backend, Shares()))


def accelerator_of(gpu: GpuFacts, facts: Facts) -> Accelerator | None:
    """The row of the table for a GPU, by what its driver reports or by what a person calls it."""
    main = facts.memory.total_bytes if facts.memory is not None else None
    found = match_accelerator(gpu, unified_bytes=main)
    if found is not None or gpu.name is None:
        return found
    return merge_accelerators(accelerators_named(gpu.name, memory_bytes=gpu.vram_bytes))


def _backend(gpu: GpuFacts, row: Accelerator | None, system: str | None) -> str:
    """The kind of backend that an Ollama server would use there."""
    vendor = gpu.vendor or (row.vendor if row is not None else None)
    if system == "macos" or vendor == "apple":
        return "metal"
    if vendor == "nvidia":
        return "cuda"
    return (row.linux_backend if row is not None else None) or "vulkan"


def cpu_speed(facts: Facts, read: Rate | None, multiply: Rate | None) -> DeviceSpeed:
    """Rates of the processor: as measured (``read``, ``multiply``), else the described or shared memory's bandwidth."""
    if read is None and facts.memory is not None and facts.memory.bandwidth_bytes_per_s is not None:
        read = Rate(facts.memory.bandwidth_bytes_per_s, "table", "the hardware description")
    if read is None:
        for gpu in facts.gpus or ():
            row = accelerator_of(gpu, facts)
            if row is not None and row.unified and row.memory_bandwidth_bytes_per_s is not None:
                read = Rate(row.memory_bandwidth_bytes_per_s, "table", f"table of accelerators, {row.source}")
    decode = Share(*CPU_DECODE, CPU_MODELS)
    return DeviceSpeed("CPU", "cpu", read, multiply, Shares(decode, decode, Share(*CPU_PREFILL, CPU_MODELS)))


def estimate_decode(parts: Sequence[tuple[DeviceSpeed, int]], *, sparse: bool) -> Estimated | None:
    """Decode tokens/s of one request from the bytes that each device reads for a token, one device after another.

    ``sparse``: the model has routed experts. None where a device that reads anything has no known bandwidth or share.
    """
    middle = least = most = 0.0
    used: list[DeviceSpeed] = []
    for device, count in parts:
        if count <= 0:
            continue
        share = device.shares.sparse if sparse else device.shares.decode
        if device.read is None or share is None:
            return None
        seconds = count / device.read.per_s
        middle += seconds / share.middle
        least += seconds / share.most
        most += seconds / share.least
        used.append(device)
    if not used:
        return None
    rates = [device.read for device in used if device.read is not None]
    return Estimated(
        1 / middle, 1 / most, 1 / least, worst_evidence(rates), _basis("read at", used, rates, "GB/s", 1e9)
    )


def estimate_ttft(
    prompt_tokens: int, parts: Sequence[tuple[DeviceSpeed, float]], decode: Estimated | None
) -> Estimated | None:
    """Seconds to the first token of a prompt: ``parts`` are the operations that each device does for a prompt's token.

    One decoded token comes on top. None where a device that works has no known rate or share.
    """
    if decode is None:
        return None
    middle, least, most = 1 / decode.value, 1 / decode.high, 1 / decode.low
    used: list[DeviceSpeed] = []
    for device, operations in parts:
        if operations <= 0:
            continue
        share = device.shares.prefill
        if device.multiply is None or share is None:
            return None
        seconds = prompt_tokens * operations / device.multiply.per_s
        middle += seconds / share.middle
        least += seconds / share.most
        most += seconds / share.least
        used.append(device)
    if not used:
        return None
    rates = [device.multiply for device in used if device.multiply is not None]
    return Estimated(middle, least, most, worst_evidence(rates), _basis("multiplied at", used, rates, "TFLOPS", _TERA))


def worst_evidence(rates: Sequence[Rate]) -> Evidence:
    """The grade of a number that rests on these rates: arithmetic from measured ones, else a table's."""
    return "arithmetic" if all(rate.evidence == "measured" for rate in rates) else "table"


def _basis(verb: str, used: Sequence[DeviceSpeed], rates: Sequence[Rate], unit: str, divisor: float) -> str:
    words = [
        f"{device.name} {verb} {rate.per_s / divisor:.4g} {unit} ({rate.source})"
        for device, rate in zip(used, rates, strict=True)
    ]
    return "; ".join(dict.fromkeys(words))
