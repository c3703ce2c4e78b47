"""Models that are unloaded too soon."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, EnvironmentMend, Finding, evidence
from velollm.doctor.mend import set_variable
from velollm.facts import Facts
from velollm.units import render_duration

_NAME = "keep-alive-short"
_WHY = "each time the client waits for the load, and the prompt cache is gone"
# Longer pauses (a meal, a night) are not worth the memory that the model would hold.
_WORTH_S = 2 * 3600
_FEW = 2
_STEPS_S = (600, 900, 1800, 3600, 2 * 3600, 4 * 3600)


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that was loaded again and again because it was unloaded between requests.

    Counted are loads of the same model with the same settings after a pause of up to two hours that
    is longer than the keep-alive, twice or more. Each costs the client the load, and the prompt
    cache is gone.
    """
    server = facts.server
    if server is None or server.activity is None or server.keep_alive_s is None or server.keep_alive_s < 0:
        return
    gaps_s = [gap for gap in server.activity.reload_gaps_s if server.keep_alive_s <= gap <= _WORTH_S]
    if len(gaps_s) < _FEW:
        return
    longest_s = max(gaps_s)
    wanted_s = next(step for step in _STEPS_S if step > longest_s)
    kept = render_duration(server.keep_alive_s)
    title = f"a model was loaded again {len(gaps_s)} times after pauses of up to {render_duration(longest_s)}"
    seen = (
        evidence(facts, "server.activity", f"{len(gaps_s)} loads after pauses longer than the keep-alive"),
        evidence(facts, "server.keep_alive_s", f"keep-alive {kept}"),
    )
    fix = set_variable(server, "OLLAMA_KEEP_ALIVE", f"{wanted_s // 60}m")
    yield Finding(
        _NAME, "warning", title, seen, fix, _WHY, EnvironmentMend({"OLLAMA_KEEP_ALIVE": f"{wanted_s // 60}m"})
    )


check = Check(_NAME, "Keep-alive shorter than the pauses", "warning", True, run)
