"""A long prompt that was sent to see what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts

_NAME = "truncation"
_WHY = "a client is never told that the middle of its prompt is gone, so it takes the answer for one to the whole"


def run(facts: Facts) -> Iterator[Finding]:
    """Notes a server that was proved to cut a long prompt in silence; looked at with `velollm doctor --probe` alone.

    A prompt above the context is sent twice: once with `truncate: false`, which is refused and counted,
    and once as clients send it. Where the second is answered with status 200 and fewer tokens, the cut is
    proved. It is how Ollama works by itself, so it is a note; `context-truncated` warns where prompts of
    your own were cut.
    """
    server = facts.server
    seen = server.truncation if server else None
    if seen is None or seen.status != 200 or seen.kept_tokens is None or seen.kept_tokens >= seen.prompt_tokens:
        return
    title = (
        f"prompts longer than {seen.context_tokens:,} tokens are cut in silence: "
        f"of {seen.prompt_tokens:,} tokens {seen.kept_tokens:,} were left, with status 200"
    )
    found = (
        evidence(facts, "server.truncation", f"prompt_eval_count {seen.kept_tokens:,} of {seen.prompt_tokens:,}"),
        evidence(facts, "server.truncation", f"{seen.model}, context of {seen.context_tokens:,} tokens"),
    )
    fix = f"velollm optimize {seen.model} --profile agent"
    yield Finding(_NAME, "note", title, found, fix, _WHY)


check = Check(_NAME, "What becomes of a prompt above the context", "note", True, run)
