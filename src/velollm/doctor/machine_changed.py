"""A machine that is not the one that was measured."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts, PastFlight
from velollm.units import render_bytes

_NAME = "machine-changed"
_WHY = "settings that were found best then may be wrong, or slow, on what is there now"
_SAME_SHARE = 0.02  # A kernel takes a little more or less of the memory for itself.


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a GPU, driver, engine version, processor or amount of memory that is another than at the last flight.

    Compared is what was stored with the last measurement. A changed GPU or memory is a warning; a new driver or
    engine, which usually is for the better, a note.
    """
    past = facts.past
    if past is None:
        return
    grave, light = list(_hardware(facts, past)), list(_software(facts, past))
    found = grave + light
    if not found:
        return
    what = ", ".join(name for name, _, _ in found)
    seen = (
        evidence(facts, "past", f"measured {past.when[:10]}"),
        *(evidence(facts, "past", f"{name}: {old} then, {now} now") for name, old, now in found),
    )
    title = f"since the last measurement something changed: {what}"
    yield Finding(_NAME, "warning" if grave else "note", title, seen, "velollm optimize  # measures again", _WHY)


def _hardware(facts: Facts, past: PastFlight) -> Iterator[tuple[str, str, str]]:
    now = facts.memory.total_bytes if facts.memory else None
    if past.memory_bytes is not None and now is not None and abs(now - past.memory_bytes) > _SAME_SHARE * now:
        yield "memory", render_bytes(past.memory_bytes), render_bytes(now)
    name = facts.cpu.model_name if facts.cpu else None
    if past.cpu is not None and isinstance(name, str) and name != past.cpu:
        yield "processor", past.cpu, name
    if past.gpus is not None and facts.gpus is not None:
        cards = tuple(sorted(gpu.name or gpu.vendor or "unknown" for gpu in facts.gpus))
        if cards != past.gpus:
            yield "GPU", ", ".join(past.gpus) or "none", ", ".join(cards) or "none"


def _software(facts: Facts, past: PastFlight) -> Iterator[tuple[str, str, str]]:
    drivers = tuple(sorted({gpu.driver_version for gpu in facts.gpus or () if gpu.driver_version}))
    if past.gpu_drivers and drivers and drivers != past.gpu_drivers:
        yield "GPU driver", ", ".join(past.gpu_drivers), ", ".join(drivers)
    version = facts.server.version if facts.server else None
    if past.engine_version is not None and version is not None and version != past.engine_version:
        yield "engine", past.engine_version, version


check = Check(_NAME, "A machine other than the measured one", "warning", True, run)
