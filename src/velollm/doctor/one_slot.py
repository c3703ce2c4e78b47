"""Clients that wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.doctor.mend import model_of
from velollm.facts import Facts, ServerFacts
from velollm.units import render_duration

_NAME = "one-slot"
_WHY = "the later request waits until the earlier one is answered in full"
# One pair of requests can be chance; a team shows more.
_FEW_REQUESTS = 3


def run(facts: Facts) -> Iterator[Finding]:
    """Finds requests that overlapped on a server with one slot: the later ones waited for the earlier.

    The log's line for each request tells when it ended and how long it took. With four clients at
    once, four slots took the worst time to first token from 5.1 to 2.1 s. One or two overlaps, or
    several models between which the requests may have been divided, make it a note.
    """
    server = facts.server
    if server is None or server.activity is None or _slots(server) != 1:
        return
    seen = server.activity
    if not seen.overlapping_requests:
        return
    surely = seen.overlapping_requests >= _FEW_REQUESTS and seen.models <= 1
    severity: Severity = "warning" if surely else "note"
    wait = render_duration(seen.overlap_s)
    title = (
        f"{seen.overlapping_requests} of {seen.requests} requests came while another was being answered, on one slot"
    )
    found = (
        evidence(facts, "server.activity", f"{seen.overlapping_requests} requests overlapped, for {wait} in all"),
        evidence(facts, "server.slots", "1 slot"),
    )
    yield Finding(_NAME, severity, title, found, f"velollm optimize {model_of(server)} --profile team", _WHY)


def _slots(server: ServerFacts) -> int | None:
    """Slots of what runs; a model that its family holds to one, though more were asked for, is not counted."""
    for environment in (server.environment, server.logged_environment):
        asked = (environment or {}).get("OLLAMA_NUM_PARALLEL", "")
        if asked.isdecimal() and int(asked) > 1:
            return None
    return server.slots


check = Check(_NAME, "One slot, and clients that wait", "warning", True, run)
