"""Is this Ollama new enough to be tuned in full?"""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.doctor.mend import update
from velollm.facts import Facts

_NAME = "ollama-old"


def run(facts: Facts) -> Iterator[Finding]:
    """Notes an Ollama before 0.30.

    From 0.30 on llama-server runs the models, and takes speculation, separate batch sizes, different
    types for K and V, and the room to leave on a GPU. Before, context, slots, KV type and keep-alive
    are all that can be set.
    """
    server = facts.server
    if server is None or server.engine != "ollama" or server.generation != "runner":
        return
    title = f"Ollama {server.version or 'of an unknown version'} is too old for llama-server's settings (from 0.30)"
    seen = evidence(facts, "server.generation", f"version {server.version or 'unknown'}, {server.generation}")
    why = "speculation and separate batch sizes are what makes newer versions faster, and they cannot be set"
    yield Finding(_NAME, "note", title, (seen,), update(facts, server), why)


check = Check(_NAME, "Too old for llama-server's settings", "note", True, run)
