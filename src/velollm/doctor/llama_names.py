"""LLAMA_ARG_* names that no engine reads."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Severity
from velollm.doctor.environment import judged_environment
from velollm.doctor.llamaargs import llama_names
from velollm.facts import Facts

_NAME = "llama-names"
_WHY = "the engine ignores a name that it does not know, without a word, and runs as if it were not set"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds LLAMA_ARG_* variables with a name that llama.cpp does not have.

    The names are those of the build that this version of Ollama comes with (`configs/llama-args.yaml`,
    from llama.cpp's source). Of another build than the listed one the name may exist, so it is a note.
    """
    env = judged_environment(facts)
    if env is None:
        return
    names = llama_names()
    version = facts.server.version if facts.server else None
    surely = version is not None and names.pins.get(version) == names.build
    for name in sorted(env.values):
        if not name.startswith("LLAMA_ARG_") or names.kind(name) is not None or name in names.removed:
            continue
        if not surely and name in names.others:
            continue
        near = None if name in names.others else names.near(name)
        hint = f" (is {near} meant?)" if near else ""
        severity: Severity = "warning" if surely or near else "note"
        title = f"{name} is no variable of llama.cpp b{names.build}: it is ignored{hint}"
        instead = {near: env.get(name)} if near and near not in env else {}
        mend = env.mend(**{name: None, **instead}) if severity == "warning" else None
        yield Finding(_NAME, severity, title, env.seen(name), env.unset(name), _WHY, mend)


check = Check(_NAME, "LLAMA_ARG_* names that nothing reads", "warning", True, run)
