"""Variables that are set, but not in the server that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from velollm.doctor.app_overrides import APP_SETTINGS
from velollm.doctor.base import Check, EnvironmentMend, Evidence, Finding, RestartMend, Severity, evidence
from velollm.doctor.gotext import clean
from velollm.doctor.mend import restart, set_variable
from velollm.facts import Facts, ServerFacts

_NAME = "environment-ineffective"
_WHY = "a server reads its environment once, when it starts, so it runs without what you set"
# What a shell sets for a client of Ollama, too, or only for one.
_CLIENTS = frozenset({"OLLAMA_HOST", "OLLAMA_NOHISTORY", "OLLAMA_EDITOR", "OLLAMA_API_KEY", "OLLAMA_API_BASE"})
# Not how a server works, but where and for whom: a shell's may be meant for another server.
_PLACES = frozenset({"OLLAMA_MODELS", "OLLAMA_ORIGINS", "OLLAMA_TMPDIR", "OLLAMA_NO_CLOUD", "OLLAMA_REMOTES"})


def run(facts: Facts) -> Iterator[Finding]:
    """Finds variables that are set where the server is configured, or in this shell, but not in its process.

    A server reads its environment once, when it starts: a changed unit or environment file needs a
    restart, and what a shell exports never reaches a service. `LLAMA_ARG_*` of a shell may be meant
    for another engine, so they are a note. Where the process's environment may not be read, nothing
    is found.
    """
    server = facts.server
    if server is None or server.remote or server.reachable is False:
        return
    if server.needs_reload and server.unit is not None:
        title = f"the files of {server.unit} were changed, but systemd has not read them"
        reload = "systemctl --user daemon-reload" if server.user_unit else "sudo systemctl daemon-reload"
        changed = evidence(facts, "server.needs_reload", "NeedDaemonReload=yes")
        yield Finding(_NAME, "warning", title, (changed,), f"{reload} && {restart(server)}", _WHY, RestartMend())
    running = server.environment
    if running is None or server.pid is None:
        return
    later: dict[str, str] = {}
    for variables in (server.configured or {}).values():
        later.update(variables)
    for place, variables in (server.configured or {}).items():
        names = [n for n, value in variables.items() if later[n] == value and clean(running.get(n, "")) != clean(value)]
        if names:
            title = f"{', '.join(sorted(names))}: set for the server, but not in the one that runs"
            seen = _evidence(facts, place, variables, server, names)
            yield Finding(_NAME, "warning", title, seen, restart(server), _WHY, RestartMend())
    yield from _of_shell(facts, server, running, set(later))


def _of_shell(facts: Facts, server: ServerFacts, running: Mapping[str, str], known: set[str]) -> Iterator[Finding]:
    shell = facts.environment or {}
    names = [
        name
        for name, value in shell.items()
        if name.startswith(("OLLAMA_", "LLAMA_ARG_")) and name not in _CLIENTS | known and clean(value)
        if clean(running.get(name, "")) != clean(value) and value != "(set)"
        if not (server.managed == "app" and name in APP_SETTINGS)  # `app-overrides` tells of those
    ]
    for prefix, severity in (("OLLAMA_", "warning"), ("LLAMA_ARG_", "note")):
        chosen = [name for name in names if name.startswith(prefix)]
        if chosen:
            yield _shell_finding(facts, server, shell, chosen, "warning" if severity == "warning" else "note")


def _shell_finding(
    facts: Facts, server: ServerFacts, shell: Mapping[str, str], names: list[str], severity: Severity
) -> Finding:
    title = f"{', '.join(sorted(names))}: set in this shell, but the server that runs does not have it"
    seen = _evidence(facts, "environment of this process", shell, server, names)
    values = {name: clean(shell[name]) for name in names}
    fix = set_variable(server, names[0], values[names[0]])
    wanted = {name: value for name, value in values.items() if name not in _PLACES}
    mend = EnvironmentMend(wanted) if wanted and severity == "warning" else None
    return Finding(_NAME, severity, title, seen, fix, _WHY, mend)


def _evidence(
    facts: Facts, place: str, variables: Mapping[str, str], server: ServerFacts, names: list[str]
) -> tuple[Evidence, ...]:
    running = server.environment or {}
    wanted = "; ".join(f"{name}={variables[name]}" for name in sorted(names))
    has = "; ".join(f"{name}={running[name]}" if name in running else f"{name} unset" for name in sorted(names))
    return Evidence(place, wanted), evidence(facts, "server.environment", has)


check = Check(_NAME, "Variables that have not reached the server", "warning", True, run)
