"""Results of the history to the form that may be shown to others (`velollm.bench.shared`), and back."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from velollm.bench.conditions import Conditions, note_conditions
from velollm.bench.history import Record, machine_key
from velollm.bench.notes import note_control, note_samples, note_spread
from velollm.bench.result import Start
from velollm.bench.samples import CONTROL, CrowdFigures, Sample
from velollm.bench.shared import (
    DIGEST,
    FORMAT,
    ID,
    NAME,
    SHARE_VERSION,
    WORD,
    BackendName,
    Buffer,
    EnergyBasis,
    SharedArm,
    SharedConditions,
    SharedCrowd,
    SharedFile,
    SharedGpu,
    SharedMachine,
    SharedModel,
    SharedResult,
    SharedSample,
    SharedStart,
)
from velollm.bench.workload import workload_names
from velollm.config import data_dir
from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts, GpuFacts, MadeFacts, MemoryFacts, ModelFacts
from velollm.knobs import KNOBS, KnobValue

MOST_BYTES = 64 << 20
"""No file of results is larger than this; ten thousand rounds take some 8 MB."""

_ARMS = ("default", "current", "tuned")
_BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
_BUFFERS: tuple[Buffer, ...] = get_args(Buffer)
_ENERGY: tuple[EnergyBasis, ...] = get_args(EnergyBasis)
# An address, a key or a serial number, wherever it stands.
_SECRET = re.compile(r"[0-9A-Fa-f]{12,}|(?:[0-9A-Fa-f]{2}:){3}|[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-")
_SAID = "a request failed"

PublicName = Callable[[str], str | None]
"""The name under which everybody can get a model; None where it may be somebody's own."""


@dataclass(frozen=True)
class Cleaner:
    """Lets words of products through. ``personal``: names of the user and the machine, which are in none of them."""

    personal: Collection[str] = ()

    def word(self, text: object, pattern: str = WORD) -> str | None:
        """The text where it is a word of that form and holds nothing personal; else None."""
        if not isinstance(text, str) or not re.fullmatch(pattern, text) or _SECRET.search(text):
            return None
        # A slash between words, as in "RX 6700 XT / 6750 XT", is part of no path.
        if "/" in text.replace(" / ", " ") or any(map(_is_address, re.split(r"[\s,;()\[\]]+", text))):
            return None
        known = [re.escape(name) for name in self.personal if name]
        return None if known and re.search(rf"(?<!\w)(?:{'|'.join(known)})(?!\w)", text, re.IGNORECASE) else text

    def name(self, text: object) -> str | None:
        """The same for a name of small letters."""
        return self.word(text.lower(), NAME) if isinstance(text, str) else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("."))
    except ValueError:
        return False
    return True


def share(record: Record, public_name: PublicName, cleaner: Cleaner) -> SharedResult:
    """The part of a result that tells of nobody."""
    names = {arm: arm if arm in _ARMS else f"arm-{place}" for place, arm in enumerate(record.arms, 1)}
    names |= {f"{arm}{CONTROL}": f"{name}{CONTROL}" for arm, name in names.items()}
    try:
        facts = Facts.model_validate(record.facts)
    except ValueError:
        # Of another version of this program.
        facts = Facts()
    models = record.model.split(", ")
    return SharedResult(
        id=record.id if re.fullmatch(ID, record.id) else _other_id(record),
        taken_at=record.taken_at,
        backend=next(name for name in _BACKENDS if name == record.backend),
        engine_version=cleaner.word(record.engine_version),
        profile=record.profile if record.profile in _profiles() else None,
        workload=record.workload if record.workload in workload_names() else "own",
        depth_tokens=record.depth_tokens,
        quick=record.quick,
        incomplete=record.incomplete is not None,
        elsewhere=record.elsewhere,
        tuned=names.get(record.tuned, "tuned"),
        machine=_share_machine(facts, cleaner),
        arms=tuple(
            SharedArm(
                name=names[arm],
                knobs=_share_knobs(record.knobs.get(arm, {})),
                model=_share_model(
                    facts.model if place == 0 or len(models) == 1 else None,
                    models[min(place, len(models) - 1)] if len(models) in (1, len(record.arms)) else "",
                    record.digests.get(arm),
                    public_name,
                    cleaner,
                ),
            )
            for place, arm in enumerate(record.arms)
        ),
        samples=tuple(_share_sample(sample, names) for sample in record.samples),
        starts=tuple(
            SharedStart(
                arm=names[start.arm],
                load_s=start.load_s,
                cold_ttft_s=start.cold_ttft_s,
                buffers={kind: start.buffers[kind] for kind in _BUFFERS if kind in start.buffers},
            )
            for start in record.starts
            if start.arm in names
        ),
        conditions=tuple(
            SharedConditions(**{name: getattr(look, name) for name in SharedConditions.model_fields})
            for look in record.conditions
        ),
        elapsed_s=record.elapsed_s,
        budget_s=record.budget_s,
    )


def share_file(records: Sequence[Record], version: str, public_name: PublicName, cleaner: Cleaner) -> SharedFile:
    """A file of results."""
    return SharedFile(velollm_version=version, results=tuple(share(r, public_name, cleaner) for r in records))


def render_shared(file: SharedFile) -> str:
    """The file's text: what is not known is left out."""
    return file.model_dump_json(indent=1, exclude_none=True) + "\n"


def _other_id(record: Record) -> str:
    digits = re.sub(r"\D", "", record.taken_at).ljust(14, "0")
    return f"{digits[:8]}-{digits[8:14]}-{hashlib.sha256(record.id.encode()).hexdigest()[:6]}"


def _profiles() -> set[str]:
    return {path.stem for path in (data_dir("configs") / "profiles").glob("*.yaml")}


def _share_machine(facts: Facts, cleaner: Cleaner) -> SharedMachine:
    cpu, memory = facts.cpu or CpuFacts(), facts.memory or MemoryFacts()
    name = cpu.model_name if isinstance(cpu.model_name, str) else " + ".join(cpu.model_name or ())
    isa = None if cpu.isa is None else tuple(flag for text in cpu.isa if (flag := cleaner.name(text)) is not None)
    gpus = None if facts.gpus is None else tuple(_share_gpu(gpu, cleaner) for gpu in facts.gpus)
    return SharedMachine(
        os=cleaner.name(facts.os),
        cpu=cleaner.word(name),
        architecture=cleaner.word(cpu.architecture),
        instructions=isa,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        usable_cores=cpu.usable_cores,
        memory_bytes=memory.total_bytes,
        memory_limit_bytes=memory.limit_bytes,
        gpus=gpus,
        container=None if facts.container is None else True,
        virtual_machine=facts.virtual_machine,
        wsl=facts.wsl,
    )


def _share_gpu(gpu: GpuFacts, cleaner: Cleaner) -> SharedGpu:
    return SharedGpu(
        vendor=cleaner.name(gpu.vendor),
        name=cleaner.word(gpu.name),
        vram_bytes=gpu.vram_bytes,
        integrated=gpu.integrated,
        unified_memory=gpu.unified_memory,
        compute_capability=cleaner.word(gpu.compute_capability),
        driver_version=cleaner.word(gpu.driver_version),
    )


def _share_model(
    facts: ModelFacts | None, name: str, digest: str | None, public_name: PublicName, cleaner: Cleaner
) -> SharedModel | None:
    """What everybody may know of a model; ``facts`` None: those of another one."""
    known = digest if digest is not None and re.fullmatch(DIGEST, digest) else None
    public = cleaner.word(public_name(name)) if name else None
    if facts is None:
        return None if known is None and public is None else SharedModel(name=public, digest=known)
    made = facts.made.kind if facts.made is not None else None
    return SharedModel(
        name=public,
        architecture=cleaner.word(facts.architecture),
        parameters=facts.parameters,
        layers=facts.layers,
        format=cleaner.word(facts.file_type),
        file_bytes=facts.file_bytes,
        digest=known,
        made="random" if made == "random" else "predictable" if made == "predictable" else None,
    )


def _share_knobs(knobs: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
    """Numbers, and of texts those that a knob chooses from: never a path."""
    return {
        name: value
        for name, value in knobs.items()
        if name in KNOBS and (not isinstance(value, str) or value in KNOBS[name].choices)
    }


def _share_sample(sample: Sample, names: Mapping[str, str]) -> SharedSample:
    own = ("arm", "crowds", "energy_basis", "failed", "aggregate_failed")
    return SharedSample(
        arm=names[sample.arm],
        crowds=tuple(
            SharedCrowd(
                **{name: getattr(crowd, name) for name in SharedCrowd.model_fields if name != "failed"},
                failed=crowd.error is not None,
            )
            for crowd in sample.crowds
        ),
        energy_basis=next((basis for basis in _ENERGY if basis == sample.energy_basis), None),
        failed=sample.error is not None,
        aggregate_failed=sample.aggregate_error is not None,
        **{name: getattr(sample, name) for name in SharedSample.model_fields if name not in own},
    )


def parse_shared(data: bytes, place: str) -> SharedFile:
    """Results from a shared file; ``place`` names it in errors.

    Raises:
        VeloError: it is too large, of a newer version, damaged, or something else.
    """
    hint = "`velollm export` makes such a file"
    if len(data) > MOST_BYTES:
        raise VeloError(f"{place} is larger than {MOST_BYTES >> 20} MiB: it holds no results", hint)
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VeloError(f"{place} is no JSON", hint) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise VeloError(f"{place} holds no results of VeloLLM", hint)
    version = head.get("schema_version")
    if isinstance(version, int) and version > SHARE_VERSION:
        raise VeloError(
            f"{place} was written by a newer VeloLLM (form {version}; this one knows {SHARE_VERSION})", "update VeloLLM"
        )
    try:
        return SharedFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A name that somebody made up may be long, or no text for a terminal.
        where = re.sub(r"[^ -~]", "?", ".".join(map(str, first["loc"])))[:120] or "the file"
        raise VeloError(f"{place} is damaged: {where}: {first['msg']}", "have it exported again") from error


def record_of(shared: SharedResult) -> Record:
    """A record of somebody else's result. Its notes are made of its samples again."""
    samples = tuple(_sample(sample, shared.workload) for sample in shared.samples)
    facts = _facts(shared)
    looks = tuple(Conditions(**dict(look)) for look in shared.conditions)
    default = shared.arms[0].name if shared.arms else "default"
    made = any(arm.model is not None and arm.model.made for arm in shared.arms)
    notes = [
        *(["the model is a made one: its speed is real, its text means nothing"] if made else []),
        *note_conditions(looks),
        *note_samples(samples),
        *note_spread(samples),
        *note_control(samples, default),
    ]
    return Record(
        id=shared.id,
        taken_at=shared.taken_at,
        model=", ".join(dict.fromkeys(_model_name(arm.model) for arm in shared.arms if arm.model)) or "unknown",
        backend=shared.backend,
        workload=shared.workload,
        quick=shared.quick,
        facts=facts.model_dump(mode="json", exclude_none=True),
        knobs={arm.name: dict(arm.knobs) for arm in shared.arms},
        samples=samples,
        notes=tuple(notes),
        depth_tokens=shared.depth_tokens,
        starts=tuple(
            Start(s.arm, s.load_s, s.cold_ttft_s, {str(kind): size for kind, size in s.buffers.items()})
            for s in shared.starts
        ),
        incomplete="it did not come to its end" if shared.incomplete else None,
        profile=shared.profile,
        engine_version=shared.engine_version,
        machine=None if shared.elsewhere else machine_key(facts),
        elsewhere=shared.elsewhere,
        digests={arm.name: arm.model.digest for arm in shared.arms if arm.model and arm.model.digest},
        origin="imported",
        tuned=shared.tuned,
        elapsed_s=shared.elapsed_s,
        budget_s=shared.budget_s,
        conditions=looks,
    )


def _model_name(model: SharedModel) -> str:
    """A model's public name; else what is known of it, as in ``llama 1.1B Q4_K_M``."""
    if model.name is not None:
        return model.name
    size = None if model.parameters is None else f"{model.parameters / 1e9:.2g}B"
    return " ".join(filter(None, [model.architecture, size, model.format])) or "unknown"


def _facts(shared: SharedResult) -> Facts:
    machine = shared.machine
    model = shared.arms[0].model if shared.arms else None
    gpus = None if machine.gpus is None else tuple(GpuFacts(**gpu.model_dump()) for gpu in machine.gpus)
    return Facts(
        os=machine.os,
        cpu=CpuFacts(
            model_name=machine.cpu,
            architecture=machine.architecture,
            isa=machine.instructions,
            physical_cores=machine.physical_cores,
            logical_cores=machine.logical_cores,
            usable_cores=machine.usable_cores,
        ),
        memory=MemoryFacts(total_bytes=machine.memory_bytes, limit_bytes=machine.memory_limit_bytes),
        gpus=gpus,
        virtual_machine=machine.virtual_machine,
        wsl=machine.wsl,
        model=None
        if model is None
        else ModelFacts(
            name=_model_name(model),
            architecture=model.architecture,
            parameters=model.parameters,
            layers=model.layers,
            file_type=model.format,
            file_bytes=model.file_bytes,
            made=None if model.made is None else MadeFacts(kind=model.made),
        ),
    )


def _sample(shared: SharedSample, workload: str) -> Sample:
    own: dict[str, Any] = {
        name: value for name, value in dict(shared).items() if name not in ("crowds", "failed", "aggregate_failed")
    }
    crowds = []
    for crowd in shared.crowds:
        figures = {name: value for name, value in dict(crowd).items() if name != "failed"}
        crowds.append(CrowdFigures(**figures, error=_SAID if crowd.failed else None))
    return Sample(
        **own,
        workload=workload,
        crowds=tuple(crowds),
        error=_SAID if shared.failed else None,
        aggregate_error=_SAID if shared.aggregate_failed else None,
    )
