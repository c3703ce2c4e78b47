"""Models that load slowly from their disk."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts
from velollm.units import GIB, render_bytes, render_duration

_NAME = "slow-model-disk"
_WHY = "each load of a model makes its first client wait that long"
# A turning disk reads 100 to 250 MB/s, a flash disk at SATA 500 (vendors' data sheets).
_SLOW_BYTES_PER_S = 200e6
_LEAST_BYTES, _LEAST_S = GIB, 5.0


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that loaded at less than 200 MB/s, and notes models on a disk that turns.

    The log tells how long the last load took and how many bytes of weights it brought into memory. Small
    models and loads of a few seconds are left out: there starting up is what takes the time. What a virtual
    machine says of its disks is not believed.
    """
    server = facts.server
    if server is None or server.remote:
        return
    engine = server.activity.engine if server.activity else None
    turns = server.storage is not None and server.storage.rotational is True and facts.virtual_machine is not True
    disk = evidence(facts, "server.storage", f"{server.storage.device} turns") if turns and server.storage else None
    fix = "move the models to a faster disk (OLLAMA_MODELS), or keep them loaded: OLLAMA_KEEP_ALIVE=-1"
    if engine is not None and engine.load_s is not None and engine.load_s >= _LEAST_S:
        weights = engine.weights_bytes
        speed = weights / engine.load_s
        if weights >= _LEAST_BYTES and speed < _SLOW_BYTES_PER_S:
            title = f"the last load took {render_duration(engine.load_s)}: {speed / 1e6:.0f} MB/s from the models' disk"
            seen = [
                evidence(facts, "server.activity", f"llama-server started in {engine.load_s:.2f} seconds"),
                evidence(facts, "server.activity", f"{render_bytes(weights)} of weights"),
                *([disk] if disk else []),
            ]
            yield Finding(_NAME, "warning", title, tuple(seen), fix, _WHY)
            return
    if disk is not None:
        yield Finding(_NAME, "note", "the models lie on a disk that turns", (disk,), fix, _WHY)


check = Check(_NAME, "Slow disk of the models", "warning", False, run)
