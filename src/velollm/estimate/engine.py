"""Ask an engine: load the model for a moment with these knobs, and read from its log what it allocated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from velollm.backends.base import Backend, iter_backends
from velollm.backends.buffers import parse_device_buffers
from velollm.errors import UsageError, VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.find import Found
from velollm.estimate.kept import corrected, keep_measured, kept_factors
from velollm.facts import Facts
from velollm.knobs import Knobs
from velollm.models.memory import CPU, DeviceMemory, MemoryEstimate


def ask_engine(backend: str, name: str, found: Found, knobs: Knobs, machine: Facts, data: Path) -> MemoryEstimate:
    """What the engine of that backend allocates; the correction is kept for later estimates.

    Where no engine is at hand, the arithmetic with what an engine once allocated for this model.

    Raises:
        VeloError: no engine can be asked and nothing was kept, or the model does not load.
    """
    expected = calculate(found.facts, knobs, machine)
    engine = _engine(backend)
    if (lacking := engine.missing()) or found.path is None:
        factors = kept_factors(data, found.facts, found.path)
        if expected is not None and factors:
            return corrected(expected, factors)
        why = lacking or f"{name} is not on this machine"
        raise VeloError(f"no engine can be asked: {why.partition(': ')[0]}", "leave out --basis engine")
    text = _load(engine, name, found, knobs, machine)
    by_device = parse_device_buffers(text)
    if not by_device:
        raise VeloError("the engine's log does not tell what it allocated", "leave out --basis engine")
    keep_measured(data, found.facts, found.path, expected, text)
    return _estimate(by_device)


def _engine(name: str) -> Backend:
    backends = {backend.name: backend for backend in iter_backends()}
    if name not in backends:
        raise UsageError(f"there is no backend '{name}'", f"backends: auto, {', '.join(backends)}")
    return backends[name]


def _load(engine: Backend, name: str, found: Found, knobs: Knobs, machine: Facts) -> str:
    """The log of a private server that has just loaded the model, and is ended again."""
    facts = machine.model_copy(update={"model": found.facts})
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        log = Path(directory) / "engine.log"
        # Nothing is computed: what threads there are does not matter, and one is always there.
        with engine.trial(engine.find_model(name), {**knobs, "threads": 1}, facts, log=log):
            pass
        return log.read_text(encoding="utf-8", errors="replace")


def _estimate(by_device: Mapping[str, Mapping[str, int]]) -> MemoryEstimate:
    names = sorted(by_device, key=lambda name: (name != CPU, name))
    return MemoryEstimate(
        tuple(
            DeviceMemory(name, **{f"{term}_bytes": number for term, number in by_device[name].items()}, basis="engine")
            for name in names
        )
    )
