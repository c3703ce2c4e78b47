"""Models on another machine's disk."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "models-on-network"
_WHY = "each load reads the whole model over the network, and a mapped one stalls when the network does"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a models directory on a network drive, or on a drive of Windows seen from inside WSL."""
    server = facts.server
    storage = server.storage if server else None
    if server is None or storage is None or storage.network is not True:
        return
    kind = storage.filesystem or "a network drive"
    title = f"the models lie on {kind}: {server.models_dir or storage.mount}"
    seen = (evidence(facts, "server.storage", f"{storage.device or kind} on {storage.mount}, {kind}"),)
    fix = "copy the models to a disk of this machine, and set OLLAMA_MODELS to it"
    yield Finding(_NAME, "warning", title, seen, fix, _WHY)


check = Check(_NAME, "Models on a network drive", "warning", False, run)
