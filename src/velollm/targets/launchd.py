"""macOS: variables of the user's launchd session, which every program started from then on gets.

`launchctl setenv` holds until the next login, so an agent of ours sets them again then. Commands and keys:
launchctl(1), launchd.plist(5); that the Ollama app takes them: Ollama v0.33.0-rc2 docs/faq.mdx:79-89.
"""

from __future__ import annotations

import os
import plistlib
import re
import shlex
from collections.abc import Mapping
from typing import Any
from xml.parsers.expat import ExpatError

from velollm.backends.ollama_render import ENVIRONMENT_NAMES
from velollm.errors import VeloError
from velollm.targets.activation import Activation, CommandActivation
from velollm.targets.base import ABSENT, Address, State, Target
from velollm.targets.environment import Changes, EnvironmentPlace, Ground, refuse_foreign
from velollm.targets.file import FileTarget
from velollm.targets.places import Write
from velollm.targets.system import System, run_or_raise

LABEL = "com.velollm.environment"
_APP_STEPS = (("osascript", "-e", 'quit app "Ollama"'), ("open", "-a", "Ollama"))
# The app sets these for its server from its own settings: Ollama v0.33.0-rc2 app/server/server.go:244-274.
_OF_THE_APP = ("OLLAMA_CONTEXT_LENGTH", "OLLAMA_MODELS", "OLLAMA_HOST", "OLLAMA_ORIGINS")


class LaunchdVariableTarget(Target):
    """One variable of the session. One set to nothing counts as not set: `launchctl getenv` shows no difference."""

    kind = "launchd-variable"

    def __init__(self, name: str, system: System | None = None) -> None:
        self._name, self._system = name, system or System()

    @property
    def label(self) -> str:
        return f"launchd variable {self._name}"

    def address(self) -> Address:
        return {"kind": self.kind, "name": self._name}

    @classmethod
    def from_address(cls, address: Address) -> LaunchdVariableTarget:
        return cls(str(address["name"]))

    def read(self) -> State:
        value = read_variable(self._system, self._name)
        return ABSENT if value is None else State.of_text(value)

    def write(self, state: State) -> None:
        words = ["unsetenv", self._name] if state.content is None else ["setenv", self._name, state.text]
        run_or_raise(self._system.run, ["launchctl", *words])


target = LaunchdVariableTarget


def read_variable(system: System, name: str) -> str | None:
    """Value of a session variable; None where it is not set. Raises `VeloError` where launchctl cannot be run."""
    done = system.run(["launchctl", "getenv", name], None, None)
    return done.out.removesuffix("\n") or None if done.status == 0 else None


def render_agent(environment: Mapping[str, str]) -> bytes:
    """The agent that sets these variables at each login."""
    script = "; ".join(f'launchctl setenv {name} "${name}"' for name in environment)
    body = {
        "Label": LABEL,
        "ProgramArguments": ["/bin/sh", "-c", script],
        "EnvironmentVariables": dict(environment),
        "RunAtLoad": True,
    }
    return plistlib.dumps(body, sort_keys=False)


def parse_agent(content: bytes) -> dict[str, str]:
    """The variables that an agent gives its program; none where it is no property list."""
    try:
        body: Any = plistlib.loads(content)
    except (plistlib.InvalidFileException, ExpatError, ValueError, AttributeError, OverflowError):
        return {}
    found = body.get("EnvironmentVariables") if isinstance(body, dict) else None
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def parse_list(text: str) -> dict[int, str]:
    """Labels by process id of `launchctl list` (columns PID, Status, Label)."""
    rows = (line.split("\t") for line in text.splitlines())
    return {int(row[0]): row[2] for row in rows if len(row) == 3 and re.fullmatch(r"\d{1,9}", row[0])}


class LaunchdPlace(EnvironmentPlace):
    """The session's variables and the agent that keeps them, for the Ollama app or an agent such as Homebrew's."""

    def __init__(self, ground: Ground, app: bool) -> None:
        self._system, self._app, self._pid = ground.system, app, ground.pid
        self._running = ground.facts.server.environment if ground.facts.server else None
        self._agents = ground.system.home / "Library" / "LaunchAgents"
        self.agent = FileTarget(self._agents / f"{LABEL}.plist")
        self._job = None if app else self._find_job()

    @classmethod
    def available(cls, ground: Ground) -> LaunchdPlace | None:
        server = ground.facts.server
        if ground.system.platform != "darwin" or server is None or server.managed not in ("app", "launchd"):
            return None
        return cls(ground, server.managed == "app")

    def _find_job(self) -> str | None:
        listed = self._system.text_of(["launchctl", "list"])
        return parse_list(listed or "").get(self._pid or 0)

    @property
    def label(self) -> str:
        return f"launchd session and {self.agent.label}"

    @property
    def activation(self) -> Activation:
        if self._app:
            return CommandActivation(_APP_STEPS, self._system)
        if self._job is None:
            steps = (("sudo", "launchctl", "kickstart", "-k", "system/LABEL"),)
            return CommandActivation(steps, self._system, "the server's launchd job is not one of this user's session")
        job = f"gui/{os.getuid()}/{self._job}" if hasattr(os, "getuid") else self._job
        return CommandActivation((("launchctl", "kickstart", "-k", job),), self._system)

    def refusal(self) -> str | None:
        return self.activation.lacking()

    def ours(self) -> dict[str, str]:
        return parse_agent(self.agent.read().content or b"")

    def read(self) -> dict[str, str]:
        names = sorted({*ENVIRONMENT_NAMES, *self.ours()})
        values = {name: read_variable(self._system, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def writes(self, changes: Changes) -> list[Write]:
        self.check(changes)
        for name, value in changes.items():
            if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value or ""):
                raise VeloError(f"the value of {name} has a control character in it", "give a plain value")
        found: list[Write] = []
        for name, value in changes.items():
            variable = LaunchdVariableTarget(name, self._system)
            before, after = variable.read(), State.of_text(value) if value else ABSENT
            if before != after:
                found.append((variable, before, after))
        before = self.agent.read()
        merged = {**parse_agent(before.content or b""), **changes}
        kept = {name: value for name, value in merged.items() if value is not None}
        after = State(render_agent(kept), 0o644) if kept else ABSENT
        return found if before.matches(after) else [*found, (self.agent, before, after)]

    def check(self, changes: Changes) -> None:
        if self._app:
            decided = dict.fromkeys(_OF_THE_APP, "the settings of the Ollama app")
        else:
            file = self._agents / f"{self._job}.plist"
            own = parse_agent(FileTarget(file).read().content or b"")
            decided = {name: str(file) for name in own}
        for name in changes:
            if name in decided:
                raise VeloError(f"{name} is decided by {decided[name]}", "change it there")
        gone = [n for n, value in changes.items() if value is None and read_variable(self._system, n) is None]
        refuse_foreign(gone, self._running, self.label)

    def by_hand(self, changes: Changes) -> tuple[str, ...]:
        lines = [
            f"launchctl unsetenv {name}" if value is None else shlex.join(["launchctl", "setenv", name, value])
            for name, value in changes.items()
        ]
        return (*lines, *self.activation.commands())


place = LaunchdPlace
