"""Every result that was ever taken here, as raw samples with the facts and knobs they were taken under."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from velollm.bench import store
from velollm.bench.conditions import Conditions, note_conditions
from velollm.bench.result import BenchResult, Start
from velollm.bench.samples import CONTROL, Sample
from velollm.bench.sizes import Sizes
from velollm.errors import UsageError
from velollm.facts import Facts, GpuFacts
from velollm.knobs import Knobs, KnobValue
from velollm.units import GIB

SCHEMA_VERSION = 2
"""1 had no engine, no machine and no digests, and lay in `store.OLD_FILE`."""

LAST = "last"
"""Stands for the id of the newest result."""


class Record(BaseModel):
    """One result: raw ``samples``, the ``facts`` of the machine (those that are known) and each arm's ``knobs``.

    ``incomplete``: why it broke off, None where it did not. ``engine_build``: as the engine's log names it.
    ``machine``: what tells the machine that the engine ran on from others (`machine_key`); None: unknown. ``digests``:
    what tells each arm's model file from others. ``elsewhere``: the server was another machine's, so that ``facts`` do
    not tell of it. ``origin``: ``imported`` ones were measured by somebody else. ``taken_at`` is UTC in ISO 8601.
    Averages are computed from the samples when asked for, never stored.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    schema_version: int = SCHEMA_VERSION
    id: str
    taken_at: str
    model: str
    backend: str
    workload: str
    quick: bool
    facts: dict[str, object]
    knobs: dict[str, dict[str, KnobValue]]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    depth_tokens: int = 0
    starts: tuple[Start, ...] = ()
    incomplete: str | None = None
    profile: str | None = None
    engine_version: str | None = None
    engine_build: str | None = None
    machine: str | None = None
    elsewhere: bool = False
    digests: dict[str, str] = Field(default_factory=dict)
    origin: Literal["here", "imported"] = "here"
    tuned: str = "tuned"
    sizes: Sizes | None = None
    elapsed_s: float | None = None
    budget_s: float | None = None
    answers: dict[str, str] = Field(default_factory=dict)
    conditions: tuple[Conditions, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the one that the others are compared with first; the control is none."""
        names = dict.fromkeys((*self.knobs, *(sample.arm for sample in self.samples)))
        return tuple(name for name in names if not name.endswith(CONTROL))

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What spoiled the run beside its own work: other programs, swapping, heat, a battery. Empty: nothing known."""
        return tuple(note_conditions(self.conditions))

    def samples_of(self, arm: str) -> list[Sample]:
        """An arm's samples and those of its control, which ran with the same settings."""
        return [sample for sample in self.samples if sample.arm in (arm, f"{arm}{CONTROL}")]


@dataclass(frozen=True)
class History:
    """Results, oldest first. ``records`` were taken here; ``imported`` ones are another machine's and judge nothing
    of this one. ``damaged``: how many could not be read.
    """

    records: tuple[Record, ...]
    imported: tuple[Record, ...] = ()
    damaged: int = 0

    @property
    def all(self) -> tuple[Record, ...]:
        """Own and imported ones, oldest first."""
        return tuple(sorted((*self.records, *self.imported), key=lambda record: record.taken_at))

    def find(self, name: str) -> Record:
        """The result with this id, or with the only one that begins so; `LAST` is the newest.

        Raises:
            UsageError: there is none, or several.
        """
        hint = "`velollm bench --list` lists the results"
        if name == LAST:
            if not self.records:
                raise UsageError("there is no result yet", "`velollm bench` takes one")
            return self.records[-1]
        found = [record for record in self.all if record.id.startswith(name)] if name else []
        exact = [record for record in found if record.id == name]
        if len(exact or found) != 1:
            raise UsageError(f"there {'are several results' if found else 'is no result'} '{name}'", hint)
        return (exact or found)[0]


def machine_key(facts: Facts) -> str | None:
    """What tells a machine from others as far as speed goes: processor, cores, memory, GPUs. None: unknown."""
    cpu, memory = facts.cpu, facts.memory
    if cpu is None or memory is None or cpu.model_name is None or memory.total_bytes is None:
        return None
    name = cpu.model_name if isinstance(cpu.model_name, str) else " + ".join(cpu.model_name)
    # In GiB: the kernel keeps a little more or less for itself from start to start.
    parts = [name, f"{cpu.usable_cores} threads", f"{memory.total_bytes / GIB:.0f} GiB"]
    return ", ".join([*parts, *sorted(_gpu(gpu) for gpu in facts.gpus or ())])


def _gpu(gpu: GpuFacts) -> str:
    size = "" if gpu.vram_bytes is None else f" {gpu.vram_bytes / GIB:.0f} GiB"
    return f"{gpu.name or gpu.vendor or 'unknown GPU'}{size}"


def make_record(
    result: BenchResult,
    *,
    model: str,
    backend: str,
    facts: Facts,
    knobs: Mapping[str, Knobs],
    profile: str | None = None,
    engine_version: str | None = None,
    engine_build: str | None = None,
    digests: Mapping[str, str] | None = None,
    elsewhere: bool = False,
    now: datetime | None = None,
) -> Record:
    """A result as the history keeps it. ``elsewhere``: the engine ran on a machine that ``facts`` do not tell of."""
    taken_at = (now or datetime.now(UTC)).astimezone(UTC)
    return Record(
        id=f"{taken_at:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        taken_at=taken_at.isoformat(timespec="seconds"),
        model=model,
        backend=backend,
        workload=result.workload,
        quick=result.quick,
        facts=facts.model_dump(mode="json", exclude_none=True),
        knobs={arm: dict(chosen) for arm, chosen in knobs.items()},
        samples=result.runs,
        notes=result.notes,
        depth_tokens=result.depth_tokens,
        starts=result.starts,
        incomplete=result.incomplete,
        profile=profile,
        engine_version=engine_version,
        engine_build=engine_build,
        machine=None if elsewhere else machine_key(facts),
        elsewhere=elsewhere,
        digests=dict(digests or {}),
        tuned=result.tuned,
        sizes=result.sizes,
        elapsed_s=result.elapsed_s,
        budget_s=result.budget_s,
        answers=dict(result.answers),
        conditions=result.conditions,
    )


def result_of(record: Record) -> BenchResult:
    """The comparison that a record is of. What an old record does not hold is taken from its samples."""
    runs, arms = record.samples, record.arms
    rounds = len({sample.round for sample in runs})
    prompts = [s.prompt_tokens + (s.cached_prompt_tokens or 0) for s in runs if s.prompt_tokens is not None]
    prompt, answer = round(median(prompts or [0])), max((sample.answer_tokens for sample in runs), default=0)
    sizes = Sizes(0, rounds, prompt, answer, 0.0, 0, prompt, answer)
    return BenchResult(
        workload=record.workload,
        arms=arms,
        default=arms[0] if arms else "default",
        tuned=record.tuned,
        runs=runs,
        sizes=record.sizes or sizes,
        notes=record.notes,
        elapsed_s=record.elapsed_s or 0.0,
        budget_s=record.budget_s or 0.0,
        quick=record.quick,
        depth_tokens=record.depth_tokens,
        starts=record.starts,
        answers=record.answers,
        conditions=record.conditions,
        incomplete=record.incomplete,
    )


def append_record(directory: Path, record: Record) -> tuple[str, ...]:
    """Add a result to the history in ``directory``; it is on the disk when this returns.

    What else happened (an old history that was taken over, a damaged one that was put aside) comes back, in a sentence
    each.

    Raises:
        VeloError: it cannot be written; the history is then as it was before.
    """
    return append_records(directory, [record])[1]


def append_records(directory: Path, records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same for several, all or none of them. The ids of those that were new, and what else happened."""
    rows = [_row_of(record) for record in records]
    return store.write_rows(directory, rows, _old_row)


def read_history(directory: Path, newest: int | None = None) -> History:
    """The history in ``directory``, or no more than its ``newest`` own results; empty where there is none.

    Raises:
        VeloError: it is there but cannot be read.
    """
    found = store.read_rows(directory, _old_row, newest)
    records: list[Record] = []
    damaged = found.damaged
    for row in found.rows:
        try:
            records.append(_record_of(row))
        except ValidationError:
            damaged += 1
    records.sort(key=lambda record: record.taken_at)
    own = [record for record in records if record.origin == "here"]
    return History(tuple(own), tuple(record for record in records if record.origin != "here"), damaged)


def parse_old_line(line: bytes) -> Record | None:
    """A record from a line of the history as it was before (`store.OLD_FILE`); None where it cannot be read.

    Only of what it tells is made what it lacks: the machine from its facts, Ollama's version from its server.
    """
    try:
        record = Record.model_validate_json(line)
    except ValidationError:
        return None
    try:
        facts = Facts.model_validate(record.facts)
    except ValueError:
        return record
    server = facts.server
    remote = record.backend == "openai" or bool(server and server.remote)
    version = server.version if server and record.backend == "ollama" else None
    update = {"machine": None if remote else machine_key(facts), "elsewhere": remote, "engine_version": version}
    return record.model_copy(update=update)


def _old_row(line: bytes) -> store.Row | None:
    record = parse_old_line(line)
    return None if record is None else _row_of(record)


def _row_of(record: Record) -> store.Row:
    fields = record.model_dump(mode="json")
    samples = fields.pop("samples")
    return store.Row(fields, tuple(samples))


def _record_of(row: store.Row) -> Record:
    return Record.model_validate({**row.fields, "samples": row.samples})
