"""Who keeps an Ollama server running, what that one sets for it, and where its log is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from velollm.errors import VeloError
from velollm.probe.source import Source
from velollm.targets.envfile import parse_env
from velollm.targets.unitfile import parse_show_environment

_UNIT = re.compile(r"/([\w@.:\\-]{1,200}\.service)(?=/|$)")
_BOX = re.compile(r"docker|containerd|kubepods|libpod|/lxc|/machine\.slice|nspawn")
_PROPERTIES = (
    "LoadState,ActiveState,UnitFileState,MainPID,User,Environment,EnvironmentFiles,UnsetEnvironment,NeedDaemonReload,"
    "FragmentPath"
)


@dataclass(frozen=True)
class Service:
    """A systemd unit. ``configured``: variables by the place that sets them."""

    unit: str
    user_unit: bool = False
    state: str | None = None
    main_pid: int | None = None
    user: str | None = None
    needs_reload: bool | None = None
    configured: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unreadable_files: tuple[str, ...] = ()

    @property
    def systemctl(self) -> str:
        """The command to steer it with."""
        return "systemctl --user" if self.user_unit else "sudo systemctl"


def parse_unit(cgroup: str) -> tuple[str, bool] | None:
    """Unit that a process belongs to, and whether it is a user's own, of its `/proc/PID/cgroup`; None where none.

    A process of a login session belongs to a scope, below a service of the session's user.
    """
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1]
        units = _UNIT.findall(path)
        if units and path.endswith(units[-1]) and not units[-1].startswith("user@"):
            return units[-1], "/user@" in path
    return None


def is_boxed(cgroup: str, own: str) -> bool:
    """Does this `/proc/PID/cgroup` tell of a container that we are not in ourselves?"""
    return bool(_BOX.search(cgroup)) and cgroup.strip() != own.strip()


def parse_properties(text: str) -> dict[str, list[str]]:
    """Values of `systemctl show`, by name; a name can come several times (EnvironmentFiles)."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z]{1,64}", name):
            found.setdefault(name, []).append(value)
    return found


def parse_environment_file(value: str) -> str:
    """Path of an ``EnvironmentFiles=`` value such as ``/etc/default/ollama (ignore_errors=yes)``."""
    return re.sub(r" \(ignore_errors=(?:yes|no)\)$", "", value).strip()


def read_service(source: Source, unit: str, *, user_unit: bool = False) -> Service | None:
    """What systemd knows of a unit; None where it knows none of that name, or there is no systemd."""
    scope = ["--user"] if user_unit else []
    text = source.run(["systemctl", *scope, "show", unit, "--no-pager", "-p", _PROPERTIES])
    known = parse_properties(text or "")
    if known.get("LoadState", [""])[0] not in ("loaded", "masked", "error"):
        return None
    files = [path for value in known.get("EnvironmentFiles", ()) if (path := parse_environment_file(value))]
    texts = {path: source.read(path) for path in files}
    configured = {f"systemctl show {unit}": parse_show_environment(known.get("Environment", [""])[0])}
    configured.update({path: _parse_file(text) for path, text in texts.items() if text is not None})
    unset = known.get("UnsetEnvironment", [""])[0].split()  # last of all, and over every file (systemd.exec(5))
    configured = {p: {n: v for n, v in names.items() if n not in unset} for p, names in configured.items()}
    pid = known.get("MainPID", ["0"])[0]
    return Service(
        unit=unit,
        user_unit=user_unit,
        state=known.get("ActiveState", [""])[0] or None,
        main_pid=int(pid) if pid.isdecimal() and len(pid) < 10 and int(pid) else None,
        user=known.get("User", [""])[0] or None,
        needs_reload={"yes": True, "no": False}.get(known.get("NeedDaemonReload", [""])[0]),
        configured={place: variables for place, variables in configured.items() if variables},
        unreadable_files=tuple(path for path, text in texts.items() if text is None),
    )


def _parse_file(text: str) -> dict[str, str]:
    try:
        return parse_env(text)
    except VeloError:
        return {}


def read_journal(source: Source, service: Service, lines: int) -> str | None:
    """The newest lines of a unit's journal; None where there is none that we may read."""
    scope = ["--user-unit" if service.user_unit else "-u", service.unit]
    text = source.run(["journalctl", *scope, "-n", str(lines), "-o", "cat", "--no-pager", "--quiet"])
    return text if text and text.strip() else None
