"""Commands that mend a server's settings, by who keeps the server running."""

from __future__ import annotations

from velollm.facts import Facts, ServerFacts


def model_of(server: ServerFacts) -> str:
    """The model to name in a command: the one in memory, else the only one installed, else a placeholder."""
    if server.loaded:
        return server.loaded[0].name
    return server.installed[0] if server.installed and len(server.installed) == 1 else "MODEL"


def restart(server: ServerFacts) -> str:
    """Command or step that restarts the server."""
    if server.unit is not None:
        return f"{_systemctl(server)} restart {server.unit}"
    if server.managed == "app":
        return "quit the Ollama app and open it again"
    if server.managed == "container":
        return "docker restart CONTAINER"
    if server.managed == "velollm run":
        return "end `velollm run`, then: velollm run -- ollama serve"
    return "end the server, then: ollama serve"


def start(server: ServerFacts) -> str:
    """Command that starts a server that does not run."""
    if server.unit is not None:
        return f"{_systemctl(server)} start {server.unit}"
    return "ollama serve"


def set_variable(server: ServerFacts, name: str, value: str) -> str:
    """Command or step that gives the server a variable."""
    if server.unit is not None:
        line = f'Environment="{name}={value}"'
        return f"{_systemctl(server)} edit {server.unit}  # under [Service]: {line}; then: {restart(server)}"
    if server.managed == "app":
        return f"launchctl setenv {name} {value}  # then {restart(server)}"
    if server.managed == "container":
        return f"start the container with it: docker run -e {name}={value} …"
    return f"{name}={value} ollama serve  # after the running server has ended"


def unset_variable(server: ServerFacts, name: str) -> str:
    """Step that takes a variable from the server."""
    if server.unit is not None:
        return f"{_systemctl(server)} edit --full {server.unit}  # without {name}; then: {restart(server)}"
    return f"unset {name}  # where the server is started; then restart it"


def noted(command: str, hint: str) -> str:
    """A command with one more thing to know, which goes into its comment."""
    return f"{command}; {hint}" if "  # " in command else f"{command}  # {hint}"


def update(facts: Facts, server: ServerFacts) -> str:
    """Command or step that brings a newer Ollama."""
    if server.managed == "container":
        return "docker pull ollama/ollama, then start the container anew"
    if facts.os in ("macos", "windows"):
        return "update the Ollama app (its menu, or ollama.com/download)"
    return "curl -fsSL https://ollama.com/install.sh | sh"


def _systemctl(server: ServerFacts) -> str:
    return "systemctl --user" if server.user_unit else "sudo systemctl"
