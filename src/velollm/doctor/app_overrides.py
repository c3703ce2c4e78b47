"""Variables that the desktop app replaces by its own settings."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, evidence
from velollm.doctor.gotext import clean
from velollm.facts import Facts

_NAME = "app-overrides"
_WHY = "what you set is not what runs, however often the app is started again"
# Ollama v0.33.0-rc2 app/server/server.go:244-274. Without OLLAMA_HOST: a client's form of it is not the server's.
APP_SETTINGS = {
    "OLLAMA_CONTEXT_LENGTH": "Context length",
    "OLLAMA_MODELS": "Model location",
    "OLLAMA_ORIGINS": "Allow browser extensions",
}


def run(facts: Facts) -> Iterator[Finding]:
    """Finds variables that Ollama's desktop app has replaced by its own settings.

    The app starts the server with your environment, but for some variables that its settings window decides.
    Looked at is what its server has, or says in its log that it took.
    """
    server = facts.server
    if server is None or server.managed != "app":
        return
    running = server.environment if server.environment is not None else server.logged_environment
    if running is None:
        return
    place = "server.environment" if server.environment is not None else "server.logged_environment"
    wanted: dict[str, tuple[str, str]] = {}
    own = facts.sources.get("environment") or "environment of this process"
    for where, variables in ((own, facts.environment or {}), *(server.configured or {}).items()):
        wanted.update({n: (where, clean(v)) for n, v in variables.items() if n in APP_SETTINGS and clean(v)})
    for name, (where, value) in sorted(wanted.items()):
        has = clean(running.get(name, ""))
        if has == value:
            continue
        title = f"the desktop app decides {name}, not the environment: {has or 'nothing'} instead of {value}"
        seen = (Evidence(where, f"{name}={value}"), evidence(facts, place, f"{name}={has or '(not set)'}"))
        fix = f'in the Ollama app: Settings, "{APP_SETTINGS[name]}"'
        yield Finding(_NAME, "warning", title, seen, fix, _WHY)


check = Check(_NAME, "Variables that the desktop app replaces", "warning", False, run)
