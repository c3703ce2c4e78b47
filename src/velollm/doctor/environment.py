"""The environment that counts: the server's own where one runs, else that of this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from velollm.doctor.base import EnvironmentMend, Evidence, Mend
from velollm.doctor.gotext import clean
from velollm.doctor.mend import set_variable, unset_variable
from velollm.facts import Facts, ServerFacts

# What a log's `server config` line says where nobody set anything (Ollama v0.33.0-rc2 envconfig/config.go:201-303);
# flash attention is logged as false there, too, though it is automatic.
_LOGGED_DEFAULTS = frozenset({"", "0", "1", "false", "5m0s", "512", "[]", "INFO"})


@dataclass(frozen=True)
class Environment:
    """Variables that are set, without Ollama's blanks and quotes, and where each was read.

    ``server``: whose they are; None: those of this process, which a server started from here would get.
    """

    values: Mapping[str, str]
    places: Mapping[str, str]
    server: ServerFacts | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: str = "") -> str:
        """Value of a variable."""
        return self.values.get(name, default)

    def seen(self, *names: str) -> tuple[Evidence, ...]:
        """Evidence for variables; of names that hint at a secret the value is not shown."""
        return tuple(
            Evidence(self.places.get(name, "environment"), f"{name}={_shown(name, self.values.get(name, 'not set'))}")
            for name in names
        )

    def unset(self, name: str) -> str:
        """Command that takes a variable away."""
        return unset_variable(self.server, name) if self.server else f"unset {name}"

    def set(self, name: str, value: object) -> str:
        """Command that sets a variable."""
        return set_variable(self.server, name, str(value)) if self.server else f"export {name}={value}"

    def mend(self, **variables: object) -> Mend | None:
        """What may be done about them by itself: only a server's environment can be changed."""
        if self.server is None:
            return None
        return EnvironmentMend({name: None if value is None else str(value) for name, value in variables.items()})


def judged_environment(facts: Facts) -> Environment | None:
    """The environment to judge; None where it is unknown.

    Of a server that runs: its process's; where that may not be read, what its log says it took, and what its service
    is configured with. Of one that does not run: its service's, else this process's.
    """
    server = facts.server
    if server is not None and server.remote:
        return None
    if server is not None and _runs(server):
        return _of_server(facts, server)
    if server is not None and server.configured:
        return _of_places(server)
    if facts.environment is None:
        return None
    values = _cleaned(facts.environment)
    places = {name: facts.sources.get(f"environment.{name}") or "environment of this process" for name in values}
    return Environment(values, places)


def _runs(server: ServerFacts) -> bool:
    return server.reachable is True or server.pid is not None or server.environment is not None


def _of_server(facts: Facts, server: ServerFacts) -> Environment | None:
    if server.environment is not None:
        values = _cleaned(server.environment)
        place = facts.sources.get("server.environment") or "environment of the server's process"
        return Environment(values, dict.fromkeys(values, place), server)
    found = _of_places(server) if server.configured else None
    if server.logged_environment is None:
        return found
    logged = {n: v for n, v in _cleaned(server.logged_environment).items() if v not in _LOGGED_DEFAULTS}
    place = facts.sources.get("server.logged_environment") or "log of the server"
    values = {**(found.values if found else {}), **logged}
    return Environment(values, {**(found.places if found else {}), **dict.fromkeys(logged, place)}, server)


def _of_places(server: ServerFacts) -> Environment:
    values: dict[str, str] = {}
    places: dict[str, str] = {}
    for place, variables in (server.configured or {}).items():
        given = {name: value for name, value in _cleaned(variables).items() if value}
        values.update(given)
        places.update(dict.fromkeys(given, place))
    return Environment(values, places, server)


def _cleaned(variables: Mapping[str, str]) -> dict[str, str]:
    """As Ollama reads its own. llama.cpp trims nothing, and an empty value is one to it (common/arg.cpp:138-143)."""
    given = {name: raw if name.startswith("LLAMA_") else clean(raw) for name, raw in variables.items()}
    return {name: text for name, text in given.items() if text or name.startswith("LLAMA_ARG_")}


def _shown(name: str, value: str) -> str:
    return "(set)" if "KEY" in name or "TOKEN" in name else value
