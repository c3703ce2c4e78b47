"""Models that are one file with different parameters."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity, evidence
from velollm.facts import Facts, InstalledModelFacts

_NAME = "shared-blob"
_WHY = "a request to the one ends the engine of the other: each turn costs a load and the prompt cache"
# Parameters that hold for a loaded model; others are sent with each request (Ollama v0.33.0-rc2 api/types.go:588-596).
LOAD_PARAMETERS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")


def run(facts: Facts) -> Iterator[Finding]:
    """Finds installed models that share a file but not the parameters that a loaded model has.

    Ollama knows a loaded model by its file, so two such models can never be in memory at once: they
    take turns. Used one at a time that is no harm, so it is a note; a warning where the log shows the
    file being loaded again with other options.
    """
    server = facts.server
    by_blob: dict[str, list[InstalledModelFacts]] = {}
    for model in (server.models if server else None) or ():
        if model.blob is not None:
            by_blob.setdefault(model.blob, []).append(model)
    reloaded = {name for reload in _reloads(facts) for name in reload.split(", ")}
    for models in by_blob.values():
        kinds = {load_parameters(model) for model in models}
        if len(kinds) < 2:
            continue
        names = sorted(model.name for model in models)
        severity: Severity = "warning" if any(name in reloaded for name in names) else "note"
        title = f"{', '.join(names)} are one file with different parameters, and cannot be in memory at once"
        seen = tuple(
            evidence(facts, "server.models", f"{model.name}: {_shown(model)}")
            for model in sorted(models, key=lambda model: model.name)[:4]
        )
        fix = f"use one of them, or give them the same {', '.join(_differing(models))}"
        yield Finding(_NAME, severity, title, seen, fix, _WHY)


def load_parameters(model: InstalledModelFacts) -> tuple[tuple[str, str], ...]:
    """Parameters of a model that make it load anew, sorted."""
    return tuple(sorted((name, value) for name, value in model.parameters if name in LOAD_PARAMETERS))


def _reloads(facts: Facts) -> list[str]:
    activity = facts.server.activity if facts.server else None
    return [reload.model for reload in activity.option_reloads] if activity else []


def _differing(models: list[InstalledModelFacts]) -> list[str]:
    given = [dict(load_parameters(model)) for model in models]
    names = {name for parameters in given for name in parameters}
    return sorted(name for name in names if len({parameters.get(name) for parameters in given}) > 1)


def _shown(model: InstalledModelFacts) -> str:
    return ", ".join(f"{name} {value}" for name, value in load_parameters(model)) or "none of its own"


check = Check(_NAME, "Models that share a file but not parameters", "warning", False, run)
