"""Clients that ask for contexts of different sizes."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Mend, ParameterMend, Severity, evidence
from velollm.doctor.reload_thrash import reloads_by_model, times, waited
from velollm.facts import Facts, OptionReload, ServerFacts

_NAME = "mixed-context"
_WHY = "each time the client waits for the load, and the prompt cache is lost for everybody"
_FEW = 3


def run(facts: Facts) -> Iterator[Finding]:
    """Finds clients that ask for the same model with different `num_ctx`, so that it loads at each turn.

    The context belongs to the loaded model. A client that names none and one that names the very size that the
    model has are told apart, too. Three loads and more are a warning. With the widest of these sizes
    as the model's own parameter, clients that name none get it; those that name one still have to be
    changed.
    """
    server = facts.server
    if server is None or server.activity is None:
        return
    for model, reloads in reloads_by_model(server.activity.option_reloads).items():
        found = [reload for reload in reloads if "c" in reload.changes]
        if not found:
            continue
        sizes = _sizes(found)
        severity: Severity = "warning" if len(found) >= _FEW else "note"
        shown = " and ".join(f"{size:,}" for size in sizes[:4])
        title = f"{model} was loaded again {times(len(found))}, for contexts of {shown} tokens"
        seen = (
            evidence(facts, "server.activity", f"starting llama-server, {times(len(found))} with another -c: {shown}"),
            evidence(facts, "server.activity", waited(found)),
        )
        mend = _mend(server, model, found) if severity == "warning" else None
        fix = f"set num_ctx to {max(sizes):,} in the model, and take num_ctx out of the clients' requests"
        yield Finding(_NAME, severity, title, seen, fix, _WHY, mend)


def _sizes(reloads: list[OptionReload]) -> list[int]:
    texts = {text for reload in reloads for text in reload.changes["c"] if text and text.isdecimal()}
    return sorted(int(text) for text in texts) or [0]


def _mend(server: ServerFacts, model: str, reloads: list[OptionReload]) -> Mend | None:
    """The widest context as a parameter; the log tells contexts of all slots together, so only where there is one."""
    if server.slots not in (None, 1) or any("np" in reload.changes for reload in reloads):
        return None
    if model not in (server.installed or ()):
        return None
    return ParameterMend(model, {"num_ctx": max(_sizes(reloads))})


check = Check(_NAME, "Clients with different contexts", "warning", True, run)
