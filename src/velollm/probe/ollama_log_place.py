"""The log of an Ollama server: its service's journal, the file that it writes to, or the app's own."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.facts import UnreadFacts
from velollm.probe.ollama_manage import Service, read_journal
from velollm.probe.server import parse_server_log
from velollm.probe.source import Source

_LIMIT_BYTES = 2 * 1024 * 1024
_JOURNAL_LINES = 20_000


@dataclass(frozen=True)
class ServerLog:
    """Where a server's log is, what told so, and its newest text.

    ``text`` None: it could not be read, ``unread`` says why.
    """

    place: str | None = None
    text: str | None = None
    unread: UnreadFacts | None = None
    found_by: str = "server log"


def read_server_log(
    source: Source,
    url: str,
    pid: int | None,
    service: Service | None,
    environ: Mapping[str, str],
    home: Path,
    proc: Path = Path("/proc"),
    *,
    writer: int | None = None,
) -> ServerLog:
    """The newest 2 MB of the log of the server at ``url``, whose process is ``pid``.

    In this order: the journal of its service, the file that its standard error goes to (or that of ``writer``, the
    process that passes its lines on), what its `velollm run` has kept, the log of the desktop app (only where it tells
    of a server on the same port).
    """
    if service is not None:
        return _of_journal(source, service)
    unread = None
    if pid is not None and proc.is_dir():
        found = _of_stderr(proc, pid if writer is None else writer)
        if found.text is None:
            found = _of_runner(pid) or found
        if found.text is not None:
            return found
        unread = found.unread
    for path in app_logs(environ, home):
        text = read_tail(path)
        if text is not None and _is_of(text, url):
            return ServerLog(str(path), text, found_by="the place where the desktop app writes")
    return ServerLog(unread=unread)


def app_logs(environ: Mapping[str, str], home: Path, platform: str = sys.platform) -> list[Path]:
    """Where the desktop app writes its server's log: macOS and Linux under the home, Windows in the local data."""
    if platform == "win32":
        return [Path(environ["LOCALAPPDATA"], "Ollama", "server.log")] if environ.get("LOCALAPPDATA") else []
    return [home / ".ollama" / "logs" / "server.log"]


def read_tail(path: Path, limit_bytes: int = _LIMIT_BYTES) -> str | None:
    """The last part of a regular file, from a line's start on; None where it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            data = file.read(limit_bytes)
    except OSError:
        return None
    text = data.decode("utf-8", "replace")
    return text if size <= limit_bytes else text.partition("\n")[2]


def _of_journal(source: Source, service: Service) -> ServerLog:
    place = f"journal of {service.unit}"
    text = read_journal(source, service, _JOURNAL_LINES)
    if text is not None:
        return ServerLog(place, text[-_LIMIT_BYTES:], found_by=f"systemctl show {service.unit}")
    return ServerLog(
        place,
        found_by=f"systemctl show {service.unit}",
        unread=UnreadFacts(
            what="log",
            why=f"the {place} shows this user nothing",
            help="sudo usermod -aG systemd-journal $USER  # then log in again",
        ),
    )


def _of_stderr(proc: Path, pid: int) -> ServerLog:
    """The file behind `/proc/PID/fd/2`: read through the link, so that a renamed one is found too."""
    link = proc / str(pid) / "fd" / "2"
    try:
        target = str(link.readlink())
    except PermissionError:
        why, mend = "where the server's log goes can be seen by its own user only", "sudo velollm doctor"
        return ServerLog(unread=UnreadFacts(what="log", why=why, help=mend))
    except OSError:
        return ServerLog()
    text = read_tail(link)
    if text is not None:
        return ServerLog(target, text, found_by=str(link))
    kind = "a terminal" if target.startswith(("/dev/pts", "/dev/tty")) else target
    why = f"the server's log goes to {kind}"
    return ServerLog(unread=UnreadFacts(what="log", why=why, help="ollama serve 2>>~/ollama.log"))


def _of_runner(pid: int) -> ServerLog | None:
    """What the `velollm run` above a server has kept of its output; None where there is none, or it keeps nothing."""
    from velollm.backends.ollama_run import find_runner

    state_file = user_paths().runner_state
    if not state_file.is_file():
        return None
    try:
        runner = find_runner(state_file, pid)
        text = runner.log() if runner is not None else ""
    except VeloError:
        return None
    return ServerLog("output of `velollm run`", text, found_by=str(state_file)) if text.strip() else None


def _is_of(text: str, url: str) -> bool:
    return parse_server_log(text).port == urlsplit(url).port
