"""Does the user's Ollama answer?"""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, evidence
from velollm.doctor.mend import restart, start
from velollm.facts import Facts, ServerFacts

_NAME = "ollama-unreachable"
_WHY = "no client gets an answer"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds an Ollama that is here and does not answer at OLLAMA_HOST.

    A service that does not run, a process that does not answer, and an OLLAMA_HOST at which nothing
    answers are warnings. A program that nobody has started, or a server that listens at another
    address, is a note. Without any sign of Ollama there is nothing to find.
    """
    server = facts.server
    if server is None or server.engine != "ollama" or server.reachable is not False:
        return
    silent = evidence(facts, "server.reachable", f"nothing answers at {server.url}")
    if server.pid is not None:
        title = f"the Ollama server (process {server.pid}) does not answer at {server.url}"
        seen = (silent, evidence(facts, "server.pid", server.pid))
        yield Finding(_NAME, "warning", title, seen, restart(server), _WHY)
    elif server.unit is not None:
        yield _service(facts, server, silent)
    elif server.elsewhere:
        where = server.elsewhere[0]
        title = f"an Ollama server listens at {where}, not at {server.url}"
        seen = (silent, evidence(facts, "server.elsewhere", ", ".join(server.elsewhere)))
        yield Finding(_NAME, "note", title, seen, f"export OLLAMA_HOST={where}", _WHY)
    elif facts.sources.get("server.url") == "OLLAMA_HOST":
        fix = "start the server there, or: unset OLLAMA_HOST" if server.remote else "ollama serve"
        yield Finding(_NAME, "warning", f"no Ollama answers at OLLAMA_HOST ({server.url})", (silent,), fix, _WHY)
    elif server.binary is not None:
        seen = (evidence(facts, "server.binary", server.binary), silent)
        yield Finding(_NAME, "note", "Ollama is installed, but no server runs", seen, start(server), _WHY)


def _service(facts: Facts, server: ServerFacts, silent: Evidence) -> Finding:
    state = server.unit_state or "in an unknown state"
    seen = (evidence(facts, "server.unit_state", state), silent)
    if state == "failed":
        fix = f"journalctl -u {server.unit} -n 50  # says why; then: {start(server)}"
        return Finding(_NAME, "warning", f"the service {server.unit} has failed", seen, fix, _WHY)
    if state == "active":
        title = f"the service {server.unit} is active, but does not answer at {server.url}"
        fix = f"set OLLAMA_HOST to where it listens (journalctl -u {server.unit} shows it), or: {restart(server)}"
        return Finding(_NAME, "warning", title, seen, fix, _WHY)
    return Finding(_NAME, "warning", f"the service {server.unit} is {state}", seen, start(server), _WHY)


check = Check(_NAME, "Ollama is there, but does not answer", "warning", True, run)
