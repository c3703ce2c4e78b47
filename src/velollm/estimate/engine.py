"""Ask an engine: load the model for a moment with these knobs, and read from its log what it allocated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from velollm.backends.base import Backend, iter_backends
from velollm.backends.buffers import parse_device_buffers
from velollm.backends.ollama import OllamaBackend
from velollm.backends.stamp import engine_stamp
from velollm.errors import UsageError, VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.find import Found
from velollm.estimate.kept import Kept, find_kept, keep_measured, keep_total
from velollm.facts import Facts
from velollm.knobs import Knobs
from velollm.models.memory import CPU, DeviceMemory, MemoryEstimate, corrected

# What tells a total where there is no log.
_PS = "/api/ps"


def ask_engine(backend: str, name: str, found: Found, knobs: Knobs, machine: Facts, data: Path) -> MemoryEstimate:
    """What the engine of that backend allocates, draft and placement included; the correction is kept.

    Where no engine can be started, the arithmetic with what the running one tells of the model, if it has it loaded,
    else with what any once allocated for it.

    Raises:
        VeloError: no engine can be asked and nothing was kept, or the model does not load.
    """
    expected = calculate(found.facts, knobs, machine)
    engine = _engine(backend)
    why = _why_not(engine, name, found)
    if why is not None:
        kept = _ask_running(engine, name, found, knobs, expected, data) or find_kept(data, found.facts, found.path)
        if kept is None or expected is None:
            raise VeloError(f"no engine can be asked: {why.partition(': ')[0]}", "leave out --basis engine")
        return corrected(expected, kept.factors)
    text = _load(engine, name, found, knobs, machine)
    by_device = parse_device_buffers(text)
    if not by_device:
        raise VeloError("the engine's log does not tell what it allocated", "leave out --basis engine")
    keep_measured(data, found.facts, found.path, expected, text, _stamp(engine))
    return _estimate(by_device, found.facts.projector_bytes or 0)


def _why_not(engine: Backend, name: str, found: Found) -> str | None:
    """Why no private server can be started; None where it can."""
    if (lacking := engine.missing()) is not None:
        return lacking
    if found.path is None:
        return f"{name} is not on this machine"
    return engine.untriable(engine.find_model(name)) if isinstance(engine, OllamaBackend) else None


def _ask_running(
    engine: Backend, name: str, found: Found, knobs: Knobs, expected: MemoryEstimate | None, data: Path
) -> Kept | None:
    """The total that `/api/ps` tells, where the server has the model loaded with this very context and slots.

    How many slots it has is in its child's command line alone; where that cannot be seen, nothing is told.
    """
    if not isinstance(engine, OllamaBackend) or engine.version is None or expected is None:
        return None
    argvs = [argv for _, argv in (engine.process.children if engine.process else ()) if "-np" in argv[:-1]]
    slots = [argv[argv.index("-np") + 1] for argv in argvs]
    for held in engine.holding():
        same = held.name.removesuffix(":latest") == name.removesuffix(":latest")
        if same and held.context_tokens == knobs.get("context_tokens") and slots == [str(knobs.get("slots") or 1)]:
            keep_total(data, found.facts, found.path, expected, held.size_bytes, Kept({}, _PS, _stamp(engine)))
            return find_kept(data, found.facts, found.path, build=_PS)
    return None


def _stamp(engine: Backend) -> str | None:
    return engine_stamp(engine.name, engine.binary if isinstance(engine, OllamaBackend) else None)


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


def _estimate(by_device: Mapping[str, Mapping[str, int]], projector_bytes: int) -> MemoryEstimate:
    """The log's numbers by device; it does not tell the weights of a projector, which are as in the file."""
    names = sorted(by_device, key=lambda name: (name != CPU, name))
    found = []
    for name in names:
        terms = {f"{term}_bytes": number for term, number in by_device[name].items()}
        if name == [*names[1:], CPU][0]:
            terms["weights_bytes"] = terms.get("weights_bytes", 0) + projector_bytes
        found.append(DeviceMemory(name, **terms, basis="engine"))
    return MemoryEstimate(tuple(found))
