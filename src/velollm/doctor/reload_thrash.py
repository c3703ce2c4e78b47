"""A model that is loaded again because clients ask for other options."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, Severity, evidence
from velollm.facts import Facts, OptionReload

_NAME = "reload-thrash"
_WHY = "each time the client waits for the load, and the prompt cache is lost for everybody"
_FEW = 3
# Flag of the engine: option of a request that becomes it (Ollama v0.33.0-rc2 llm/llama_server.go:370-650).
_OPTIONS = {
    "b": "num_batch",
    "c": "num_ctx",
    "ngl": "num_gpu",
    "t": "num_thread",
    "load-mode": "use_mmap",
    "no-mmap": "use_mmap",
    "main-gpu": "main_gpu",
    "split-mode": "main_gpu",
    "spec-draft-n-max": "draft_num_predict",
    "context-shift": "shift",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a model that was loaded again, while in memory, because a request came with other options.

    Options such as `num_batch`, `num_thread` or `num_gpu` hold for a loaded model; a request with others makes
    Ollama end its engine and start it anew. Three times and more is a warning. Where the context
    is what differs, `mixed-context` tells it.
    """
    server = facts.server
    seen = server.activity.option_reloads if server and server.activity else ()
    for model, reloads in reloads_by_model(seen).items():
        found = [reload for reload in reloads if "c" not in reload.changes]
        if not found:
            continue
        names = sorted({option for reload in found for option in option_names(reload)})
        severity: Severity = "warning" if len(found) >= _FEW else "note"
        title = f"{model} was loaded again {times(len(found))} for other options: {', '.join(names)}"
        fix = f"give every client the same {' and '.join(names)}, or none: it then is the model's own (PARAMETER)"
        yield Finding(_NAME, severity, title, tuple(_evidence(facts, found)), fix, _WHY)


def reloads_by_model(reloads: tuple[OptionReload, ...]) -> dict[str, list[OptionReload]]:
    """Loads for other options, by model without the path of its file."""
    found: dict[str, list[OptionReload]] = {}
    for reload in reloads:
        found.setdefault(reload.model.rpartition("/")[2], []).append(reload)
    return found


def option_names(reload: OptionReload) -> list[str]:
    """Options of a request that made a load, without those that follow from another."""
    names = {_OPTIONS.get(flag, flag) for flag in reload.changes if flag not in ("ub", "keep", "np")}
    return sorted(names) or ["num_keep"]


def times(count: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def waited(reloads: list[OptionReload]) -> str:
    """What the loads took in all, where the log tells."""
    known = [reload.load_s for reload in reloads if reload.load_s is not None]
    return f"{sum(known):.1f} s of loading in all" if known else f"{len(reloads)} loads"


def _evidence(facts: Facts, found: list[OptionReload]) -> Iterator[Evidence]:
    last = found[-1].changes
    shown = ", ".join(f"{_OPTIONS.get(flag, flag)} {old or 'not given'} -> {new or 'not given'}" for flag, (old, new) in sorted(last.items()))  # fmt: skip  # noqa: E501
    yield evidence(facts, "server.activity", f"starting llama-server, {times(len(found))}; the last: {shown}")
    yield evidence(facts, "server.activity", waited(found))


check = Check(_NAME, "Loads for other options", "warning", False, run)
