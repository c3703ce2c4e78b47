"""Is this Ollama new enough to be tuned in full?"""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
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
    fix = "curl -fsSL https://ollama.com/install.sh | sh"
    if facts.os in ("macos", "windows"):
        fix = "update the Ollama app (its menu, or ollama.com/download)"
    if server.managed == "container":
        fix = "docker pull ollama/ollama, then start the container anew"
    yield Finding(_NAME, "note", title, (seen,), fix)


check = Check(_NAME, "Too old for llama-server's settings", "note", True, run)
