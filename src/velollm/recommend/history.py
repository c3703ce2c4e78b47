"""This machine's own measurements beside the arithmetic: how far off it was here, and what was measured already."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from velollm.bench.history import Record
from velollm.bench.stats import summarise
from velollm.facts import Facts, ModelFacts
from velollm.models.speed import Estimated
from velollm.probe.speedtest import machine_key

_NO_SPECULATION = (None, "off", "none")
NEWEST = 20
"""Only so many results count: old builds and old drivers tell little of today."""


@dataclass(frozen=True)
class Measured:
    """One arm of a record: a model of so many bytes, on GPUs or not, with its rates (None: not measured)."""

    model: ModelFacts
    on_gpu: bool
    decode_tokens_per_s: float | None
    taken_at: str


@dataclass(frozen=True)
class Calibration:
    """``factors``: measured decode speed over estimated, by whether GPUs take part, with how many measurements.

    ``measured``: by architecture and bytes of the tensors, what was measured of that very model.
    """

    factors: dict[bool, tuple[float, int]] = field(default_factory=dict)
    measured: dict[tuple[str | None, int | None, bool], Measured] = field(default_factory=dict)

    def applied(
        self, model: ModelFacts, decode: Estimated | None, ttft: Estimated | None, *, on_gpu: bool
    ) -> tuple[Estimated | None, Estimated | None]:
        """The estimates as this machine's history sets them right; without history, as they are."""
        own = self.measured.get((model.architecture, model.tensor_bytes, on_gpu))
        if own is not None and own.decode_tokens_per_s is not None:
            speed = own.decode_tokens_per_s
            what = " on a made model of its shape" if own.model.made else ""
            return Estimated(speed, speed, speed, "measured", f"measured here{what} on {own.taken_at[:10]}"), ttft
        if decode is None or on_gpu not in self.factors:
            return decode, ttft
        factor, count = self.factors[on_gpu]
        words = f"{decode.basis}; set right by {count} measurement{'s' if count > 1 else ''} here (x {factor:.2f})"
        return decode.scaled(factor, "calibrated", words), ttft


Estimate = Callable[[ModelFacts, bool], Estimated | None]


def calibrate(records: Iterable[Record], facts: Facts, estimate: Estimate) -> Calibration:
    """What the records of this machine say of ``estimate`` (a model, and whether GPUs take part).

    Only records of the same processor and GPUs count, and of those arms without speculation.
    """
    found = [item for record in list(records)[-NEWEST:] if (item := _measured(record, facts)) is not None]
    ratios: dict[bool, list[float]] = {}
    for item in found:
        expected = estimate(item.model, item.on_gpu)
        if expected is not None and item.decode_tokens_per_s:
            ratios.setdefault(item.on_gpu, []).append(item.decode_tokens_per_s / expected.value)
    own = {(item.model.architecture, item.model.tensor_bytes, item.on_gpu): item for item in found}
    return Calibration({where: (statistics.median(values), len(values)) for where, values in ratios.items()}, own)


def _measured(record: Record, facts: Facts) -> Measured | None:
    if record.elsewhere or record.origin != "here":
        return None
    try:
        then = Facts.model_validate(record.facts)
    except ValueError:
        # Facts of another version of this program.
        return None
    if then.model is None or _hardware(then) != _hardware(facts):
        return None
    plain = [arm for arm, knobs in record.knobs.items() if knobs.get("speculation") in _NO_SPECULATION]
    for arm in plain:
        speed = summarise(record.samples, arm, "decode").estimate
        if speed is not None:
            on_gpu = bool(then.gpus) and record.backend != "embedded"
            return Measured(then.model, on_gpu, speed, record.taken_at)
    return None


def _hardware(facts: Facts) -> tuple[object, ...]:
    return machine_key(facts), tuple(sorted((gpu.name or "", gpu.vram_bytes or 0) for gpu in facts.gpus or ()))
