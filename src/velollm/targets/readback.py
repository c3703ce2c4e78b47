"""Written is not running: what a server tells of the settings that it really has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from velollm.backends.ollama_render import parse_keep_alive
from velollm.facts import ServerFacts
from velollm.targets.environment import Changes

# The flags that Ollama makes of its variables: Ollama v0.33.0-rc2 llm/llama_server.go:370-622. Some models get one slot
# whatever is set: server/sched.go:497-510.
_FLAGS = {"OLLAMA_NUM_PARALLEL": ("-np", "1"), "OLLAMA_KV_CACHE_TYPE": ("--cache-type-k", None)}
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


def differences(server: ServerFacts, changes: Changes) -> tuple[str, ...]:
    """Where a server that was started anew does not have what was written, each with the place that tells.

    The process's environment is the word that counts; where it may not be read, what the log says that the server took;
    besides, the command lines of the engines. What nothing tells of is no difference.
    """
    found = (_differs(server, name, value) for name, value in changes.items())
    return tuple(why for why in found if why is not None)


def _differs(server: ServerFacts, name: str, value: str | None) -> str | None:
    told = _environment(server, name)
    if told is not None and not _same(name, told[1], value):
        place, running = told
        return f"{name} is {'not set' if running is None else running}, not {value or 'unset'} ({place})"
    flag, always = _FLAGS.get(name, (None, None))
    if flag is None or value is None:
        return None
    for argv in (model.argv for model in server.loaded or () if model.argv is not None):
        given = _after(argv, flag)
        if given not in (None, value, always):
            return f"{name} is {value}, but an engine runs with {flag} {given}"
    return None


def _same(name: str, running: str | None, wanted: str | None) -> bool:
    """Is it the same to the server? The log has values as it understood them (``30m0s``, ``true``)."""
    running, wanted = running or "", wanted or ""
    if running == wanted:
        return True
    for kind in (_TRUE, _FALSE):
        if running.lower() in kind and wanted.lower() in kind:
            return True
    return name == "OLLAMA_KEEP_ALIVE" and parse_keep_alive(running) == parse_keep_alive(wanted) is not None


def _environment(server: ServerFacts, name: str) -> tuple[str, str | None] | None:
    """The place that tells, and the value there; None where nothing tells."""
    if server.environment is not None:
        return f"environment of process {server.pid}", server.environment.get(name)
    # The log names only variables that Ollama knows, defaults too, so one that is not there tells nothing.
    logged: Mapping[str, str] = server.logged_environment or {}
    if name not in logged:
        return None
    return server.log or "log", logged[name]


def _after(argv: Sequence[str], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv[:-1] else None
