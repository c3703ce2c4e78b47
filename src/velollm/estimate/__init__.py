"""How much memory a model takes here, or on another machine: by arithmetic, or as an engine has it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from velollm.errors import VeloError
from velollm.estimate.arithmetic import calculate
from velollm.estimate.defaults import default_knobs
from velollm.estimate.find import Found, find_facts, with_projector
from velollm.estimate.kept import with_kept
from velollm.facts import CpuFacts, Facts, GpuFacts, ModelFacts
from velollm.knobs import Knobs, KnobValue
from velollm.models.dflash import ARCHITECTURE as DFLASH
from velollm.models.memory import MemoryEstimate
from velollm.models.memory_weights import lacking_shape
from velollm.units import GIB

if TYPE_CHECKING:
    from velollm.probe.source import Source

# tools/server: --cache-ram, 8192 MiB where nothing is said.
PROMPT_CACHE_BYTES = 8 * GIB

# Without any of them Linux has no GPU that an engine could use, and there is nothing to probe.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri", "/sys/class/drm/card0", "/sys/class/drm/card1")


@dataclass(frozen=True)
class Question:
    """What is asked: a model, the knobs that were given, and on what. ``backend`` auto: as the model's kind has it.

    ``hardware``: a capture or description of another machine. ``basis``: ``arithmetic`` alone, ``auto``: corrected by
    what the engine here once allocated for the model, or ``engine``: as that has it now. ``projector``: the file of one
    for pictures, where the model's name does not bring it along.
    """

    model: str
    knobs: Mapping[str, KnobValue] = field(default_factory=dict)
    draft: str | None = None
    backend: str = "auto"
    hardware: Path | None = None
    basis: Literal["auto", "arithmetic", "engine"] = "auto"
    projector: Path | None = None


@dataclass(frozen=True)
class Answer:
    """The estimate, what it is for, and what told the model's facts. ``unknown``: what is in no number."""

    model: ModelFacts
    backend: str
    knobs: Knobs
    estimate: MemoryEstimate
    unknown: tuple[str, ...] = ()
    source: Literal["file", "server", "catalog"] = "file"


def estimate(question: Question, data: Path) -> Answer:
    """Answer it; ``data`` is the user's data directory, where corrections are kept.

    Raises:
        VeloError: there is no such model, its shape is not known well enough, or no engine can be asked.
    """
    found = find_facts(question.model)
    if question.projector is not None:
        found = replace(found, facts=with_projector(found.facts, question.projector))
    draft = None if question.draft is None else find_facts(question.draft)
    backend = found.backend if question.backend == "auto" else question.backend
    machine = _machine(question.hardware)
    knobs = default_knobs(backend, machine, found.facts, {**question.knobs, **_draft_knobs(draft)})
    if question.basis == "engine":
        from velollm.estimate.engine import ask_engine

        if question.hardware is not None or question.projector is not None:
            raise VeloError(
                "an engine can be asked on this machine only, and not with a projector of its own",
                "leave out --hardware, --projector or --basis",
            )
        measured = ask_engine(backend, question.model, found, knobs, machine, data)
        return Answer(found.facts, backend, knobs, _with_cache(measured), _unknown(found), found.source)
    if question.basis == "auto" and question.hardware is None:
        found = replace(found, facts=with_kept(data, found.facts, found.path, backend))
    calculated = calculate(found.facts, knobs, machine, draft=None if draft is None else draft.facts)
    if calculated is None:
        raise _not_known(found.facts, None if draft is None else draft.facts)
    return Answer(found.facts, backend, knobs, _with_cache(calculated), _unknown(found), found.source)


def _draft_knobs(draft: Found | None) -> dict[str, KnobValue]:
    """The knobs that put a draft beside the model; one that is not here can only be counted."""
    if draft is None or draft.path is None:
        return {}
    kind = "draft-dflash" if draft.facts.architecture == DFLASH else "draft-simple"
    return {"speculation": kind, "draft_model": str(draft.path)}


def _machine(hardware: Path | None) -> Facts:
    """What of a machine decides about memory: processor and GPUs."""
    if hardware is not None:
        from velollm.probe.hardware import read_hardware

        return read_hardware(hardware)
    from velollm.probe.source import LiveSource

    source = LiveSource()
    gpus: tuple[GpuFacts, ...] | None = ()
    if not sys.platform.startswith("linux") or any(Path(name).exists() for name in _GPU_DEVICES):
        from velollm.probe.gpus import probe_gpus

        gpus = probe_gpus(source).gpus
    # Not validated, as in `model_facts`: a schema takes longer to make than the answer.
    return Facts(cpu=_processor(source), gpus=gpus)


def _processor(source: Source) -> CpuFacts:
    """The processor's vector extensions, and nothing else: that takes no time."""
    from velollm.probe.cpuinfo import info_flags, parse_cpuinfo, parse_isa

    flags = info_flags(parse_cpuinfo(source.read("/proc/cpuinfo") or ""))
    if flags is None and platform.machine().lower() in ("arm64", "aarch64"):
        # Without the list (macOS, Windows): every such processor that engines are built for has them.
        return CpuFacts(isa=("neon", "dotprod"))
    return CpuFacts(isa=parse_isa(flags))


def _with_cache(found: MemoryEstimate) -> MemoryEstimate:
    return replace(found, prompt_cache_bytes=PROMPT_CACHE_BYTES)


def _unknown(found: Found) -> tuple[str, ...]:
    notes = ["the engine's own program, stacks and libraries"]
    if found.facts.projector_bytes and found.facts.projector is None:
        notes.append("buffers for pictures, as this kind of projector is not known")
    return (*notes, *found.unknown)


def _not_known(model: ModelFacts, draft: ModelFacts | None) -> VeloError:
    for facts in filter(None, (draft, model)):
        if lacking := lacking_shape(facts):
            return VeloError(
                f"the memory of {facts.name} cannot be worked out: its file does not tell {', '.join(lacking)}",
                "try --basis engine, where an engine is at hand",
            )
    return VeloError(
        f"the memory of {model.name} cannot be worked out: how '{model.architecture}' models cache is not known",
        "try --basis engine, where an engine is at hand",
    )
