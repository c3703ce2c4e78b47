"""What Docker tells of the container that an Ollama server runs in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from velollm.targets.environment import Ground

_ID = re.compile(r"\b([0-9a-f]{64})\b")
_LABEL = "com.docker.compose."


@dataclass(frozen=True)
class Container:
    """A container as `docker inspect` tells it. ``options``: words of a `docker run` that would make it again.

    ``unsure``: settings that ``options`` leaves out, because they have no plain word there.
    """

    name: str
    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

    @property
    def service(self) -> str | None:
        """Name of its service in a Compose project; None where it is in none."""
        return self.labels.get(f"{_LABEL}service")

    @property
    def project(self) -> str | None:
        return self.labels.get(f"{_LABEL}project")

    @property
    def project_dir(self) -> Path | None:
        text = self.labels.get(f"{_LABEL}project.working_dir")
        return Path(text) if text else None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the project was started from."""
        texts = self.labels.get(f"{_LABEL}project.config_files", "").split(",")
        return tuple(Path(text) for text in texts if text)


def find_container(ground: Ground) -> Container | None:
    """The container of the user's server; None where it is in none, or Docker does not tell.

    By the process's control group; where the process cannot be seen (Docker Desktop), by the published port.
    """
    server = ground.facts.server
    if server is None or server.remote or server.managed not in ("container", None) or not server.reachable:
        return None
    system = ground.system
    if system.which("docker") is None:
        return None
    pid = ground.pid or server.pid
    name = _id_of(system.proc, pid) if pid is not None else None
    if name is None and server.managed is None and server.url:
        port = urlsplit(server.url).port
        listed = system.text_of(["docker", "ps", "--no-trunc", "--filter", f"publish={port}", "--format", "{{.ID}}"])
        name = next(iter((listed or "").split()), None)
    text = system.text_of(["docker", "inspect", name]) if name else None
    return parse_inspect(text) if text else None


def _id_of(proc: Path, pid: int) -> str | None:
    try:
        match = _ID.search((proc / str(pid) / "cgroup").read_text())
    except (OSError, ValueError):
        return None
    return match.group(1) if match else None


def parse_inspect(text: str) -> Container | None:
    """The first container of a `docker inspect`; None where it is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    found = data[0] if isinstance(data, list) and data else None
    if not isinstance(found, dict):
        return None
    config, host = _object(found.get("Config")), _object(found.get("HostConfig"))
    pairs = (str(item).partition("=") for item in config.get("Env") or () if "=" in str(item))
    return Container(
        name=str(found.get("Name", "")).lstrip("/") or str(found.get("Id", ""))[:12],
        image=str(config.get("Image", "")),
        environment={name: value for name, _, value in pairs},
        labels={str(k): str(v) for k, v in _object(config.get("Labels")).items()},
        options=tuple(_options(host, found)),
        words=tuple(str(word) for word in config.get("Cmd") or ()),
        unsure=tuple(sorted(name for name in _UNSURE if host.get(name))),
    )


_UNSURE = (
    "CapAdd",
    "CapDrop",
    "DeviceCgroupRules",
    "ExtraHosts",
    "Links",
    "Memory",
    "NanoCpus",
    "SecurityOpt",
    "Tmpfs",
)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _options(host: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    restart = _object(host.get("RestartPolicy")).get("Name")
    if restart not in (None, "", "no"):
        words += ["--restart", str(restart)]
    for port, bindings in _object(host.get("PortBindings")).items():
        for binding in bindings or ():
            address, number = binding.get("HostIp") or "", binding.get("HostPort") or ""
            inner = str(port).removesuffix("/tcp")
            words += ["-p", f"{f'{address}:' if address else ''}{number}:{inner}"]
    for mount in found.get("Mounts") or ():
        source = mount.get("Name") if mount.get("Type") == "volume" else mount.get("Source")
        words += ["-v", f"{source}:{mount.get('Destination')}{'' if mount.get('RW', True) else ':ro'}"]
    for device in host.get("Devices") or ():
        words += ["--device", f"{device.get('PathOnHost')}:{device.get('PathInContainer')}"]
    for request in host.get("DeviceRequests") or ():
        ids = request.get("DeviceIDs")
        words += ["--gpus", f"device={','.join(ids)}" if ids else "all"]
    for name, option in (("NetworkMode", "--network"), ("IpcMode", "--ipc"), ("Runtime", "--runtime")):
        if host.get(name) not in (None, "", "default", "bridge", "private", "runc"):
            words += [option, str(host[name])]
    for group in host.get("GroupAdd") or ():
        words += ["--group-add", str(group)]
    if host.get("Privileged"):
        words.append("--privileged")
    return words


def render_run(container: Container, own: Mapping[str, str], changes: Mapping[str, str | None]) -> tuple[str, ...]:
    """Commands that put a container with other variables in the place of one, which is kept under another name.

    ``own``: its variables that do not come from its image.
    """
    kept = {**own, **changes}
    words = ["docker", "run", "-d", "--name", container.name, *container.options]
    for name, value in kept.items():
        if value is not None:
            words += ["-e", f"{name}={value}"]
    note = f"  # also as before: {', '.join(container.unsure)}" if container.unsure else ""
    old = f"{container.name}-before-velollm"
    return (
        shlex.join(["docker", "stop", container.name]),
        shlex.join(["docker", "rename", container.name, old]),
        shlex.join([*words, container.image, *container.words]) + note,
    )
