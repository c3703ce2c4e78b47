"""Prompts that the server cut."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.mend import model_of
from velollm.facts import Facts

_NAME = "context-truncated"
_WHY = "the answer is made from a prompt whose middle is gone, and nobody is told"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds prompts that were longer than the context, and were cut without the client being told.

    The answer then comes with status 200, to a prompt of which the middle is gone: with a context
    of 512 tokens, 258 of 6,011 were left. Where the context has become wide enough since, it is a
    note.
    """
    server = facts.server
    seen = server.activity if server else None
    if server is None or seen is None or not seen.truncated or seen.longest_truncated_tokens is None:
        return
    longest = seen.longest_truncated_tokens
    enough = server.context_tokens is not None and server.context_tokens > longest
    severity: Severity = "note" if enough else "warning"
    kept = "" if seen.smallest_kept_tokens is None else f", down to {seen.smallest_kept_tokens:,} tokens"
    prompts = "1 prompt was" if seen.truncated == 1 else f"{seen.truncated} prompts were"
    title = f"{prompts} cut silently{kept}: the longest had {longest:,} tokens"
    found = [
        evidence(facts, "server.activity", f"truncating input prompt, {seen.truncated} times; longest {longest:,}")
    ]
    if server.context_tokens is not None:
        found.append(evidence(facts, "server.context_tokens", f"context of {server.context_tokens:,} tokens"))
    yield Finding(_NAME, severity, title, tuple(found), f"velollm optimize {model_of(server)} --profile agent", _WHY)


check = Check(_NAME, "Prompts longer than the context", "warning", True, run)
