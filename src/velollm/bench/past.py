"""The machine as it was when it was last measured, to be compared with what is there now."""

from __future__ import annotations

from pathlib import Path

from velollm.bench.guesses import past_guesses
from velollm.bench.history import Record, read_history
from velollm.errors import VeloError
from velollm.facts import Facts, PastFlight

# Enough to hold the last time that guessing was measured for each model in use.
_NEWEST = 100


def read_past(directory: Path) -> PastFlight | None:
    """What the newest record of the history tells of its machine; None where there is none that can be read."""
    try:
        records = read_history(directory, newest=_NEWEST).records
    except VeloError:
        return None
    past = parse_past(records[-1]) if records else None
    return None if past is None else past.model_copy(update={"guesses": past_guesses(records)})


def parse_past(record: Record) -> PastFlight | None:
    """The machine of a record; None where its facts are of another version of VeloLLM."""
    try:
        facts = Facts.model_validate(record.facts)
    except ValueError:
        return None
    name = facts.cpu.model_name if facts.cpu else None
    drivers = {gpu.driver_version for gpu in facts.gpus or () if gpu.driver_version}
    gpus = tuple(sorted(gpu.name or gpu.vendor or "unknown" for gpu in facts.gpus)) if facts.gpus is not None else None
    return PastFlight(
        when=record.taken_at,
        memory_bytes=facts.memory.total_bytes if facts.memory else None,
        cpu=name if isinstance(name, str) else None,
        gpus=gpus,
        gpu_drivers=tuple(sorted(drivers)) or None,
        engine_version=facts.server.version if facts.server and record.backend == "ollama" else None,
    )
