"""The user's Ollama: where it listens, its process, its environment, its models; and the binary.

What cannot be read (another user's process) is None, and `ServerProcess.unreadable` says so.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

DEFAULT_PORT = 11434
_CONNECT_S = 1.0
_TUNING = ("OLLAMA_", "LLAMA_ARG_")
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0", "::", ""})  # noqa: S104 - compared, never bound


@dataclass(frozen=True)
class ServerProcess:
    """An `ollama serve` on this machine and its children. ``environ`` None: it may not be read."""

    pid: int
    exe: str | None
    user: str | None
    argv: tuple[str, ...]
    environ: Mapping[str, str] | None
    port: int | None = None
    children: tuple[tuple[int, tuple[str, ...]], ...] = ()
    unreadable: tuple[str, ...] = field(default=())

    @property
    def tuning(self) -> dict[str, str] | None:
        """The variables that tune it; None where its environment may not be read."""
        if self.environ is None:
            return None
        return {name: value for name, value in self.environ.items() if name.startswith(_TUNING)}


def parse_host(text: str | None) -> str:
    """URL of an OLLAMA_HOST value, for a client (envconfig/config.go, `Host`).

    Without a scheme the port is 11434; `http` and `https` alone mean 80 and 443. An address that means "every
    interface" is reached on loopback.
    """
    text = (text or "").strip().strip("\"'")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    default_port = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if found else DEFAULT_PORT
    if re.fullmatch(r"[0-9a-fA-F:]*:[0-9a-fA-F:]*", rest) and rest.count(":") > 1:
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port or default_port
    except ValueError:
        host, port = "127.0.0.1", default_port
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, never bound
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def find_url(
    host: str | None,
    answers: Callable[[str], bool] | None = None,
    processes: Callable[[], Sequence[ServerProcess]] | None = None,
) -> tuple[str, str]:
    """Address of the user's server, and what told it: OLLAMA_HOST, else the default, else the process list.

    The process list is asked only where nobody listens at the default address, and counts where it names one alone.
    """
    if host and host.strip():
        return parse_host(host), "OLLAMA_HOST"
    default = parse_host(None)
    if not (answers or is_listening)(default):
        listening = [process for process in (processes or find_processes)() if process.port]
        if len(listening) == 1:
            return address_of(listening[0]), "process list"
    return default, "Ollama's default address"


def address_of(process: ServerProcess) -> str:
    """URL of a server whose port is known; its host by its OLLAMA_HOST, where that may be read."""
    parts = urlsplit(parse_host((process.environ or {}).get("OLLAMA_HOST")))
    host = parts.hostname or "127.0.0.1"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{process.port}"


def is_listening(url: str) -> bool:
    """Does anybody accept connections at this address? Asked first, because a refusal costs nothing."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 0), timeout=_CONNECT_S):
            return True
    except (OSError, OverflowError, UnicodeError):
        return False


def is_local(url: str) -> bool:
    """Is a server at this address on this machine (as far as the address tells)?"""
    return (urlsplit(url).hostname or "") in _LOCAL


def find_binary(process: ServerProcess | None = None) -> str | None:
    """The `ollama` program: that of the running server where it can be seen, else the one on PATH."""
    if process is not None and process.exe and os.access(process.exe, os.X_OK):
        return process.exe
    return shutil.which("ollama")


def find_processes() -> list[ServerProcess]:
    """Every `ollama serve` on this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
        except psutil.Error:
            continue
        if is_serve(argv):
            found.append(_read_process(process, tuple(argv)))
    return found


def is_serve(argv: Iterable[str]) -> bool:
    """Is this the command line of `ollama serve` (not of a wrapper around it)?"""
    words = list(argv)
    if not words or Path(words[0]).name.lower().removesuffix(".exe") != "ollama":
        return False
    return "serve" in words[1:] or "start" in words[1:]


def _read_process(process: psutil.Process, argv: tuple[str, ...]) -> ServerProcess:
    unreadable: list[str] = []

    def read(name: str) -> object:
        try:
            return getattr(process, name)()
        except (psutil.Error, OSError):
            unreadable.append(name)
            return None

    environ, exe, user, children = read("environ"), read("exe"), read("username"), read("children")
    try:
        ports = [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except (psutil.Error, OSError):
        unreadable.append("net_connections")
        ports = []
    return ServerProcess(
        pid=process.pid,
        exe=exe if isinstance(exe, str) else None,
        user=user if isinstance(user, str) else None,
        argv=argv,
        environ=environ if isinstance(environ, dict) else None,
        port=ports[0] if ports else None,
        children=tuple(_child(child) for child in (children if isinstance(children, list) else [])),
        unreadable=tuple(unreadable),
    )


def _child(process: psutil.Process) -> tuple[int, tuple[str, ...]]:
    try:
        return process.pid, tuple(process.cmdline())
    except psutil.Error:
        return process.pid, ()


def read_socket_user(port: int, proc: Path = Path("/proc")) -> str | None:
    """Who owns the socket that listens at a port, which every user may read; None where the system does not tell."""
    for name in ("tcp", "tcp6"):
        try:
            uid = parse_socket_uid((proc / "net" / name).read_text(encoding="ascii"), port)
        except (OSError, ValueError):
            continue
        if uid is not None:
            return _user_name(uid)
    return None


def parse_socket_uid(text: str, port: int) -> int | None:
    """User id of the socket that listens at a port, from `/proc/net/tcp` (proc(5): address 2nd, state 4th, uid 8th)."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[3] != "0A" or not fields[7].isdecimal():
            continue
        if fields[1].rpartition(":")[2] == f"{port:04X}":
            return int(fields[7])
    return None


def _user_name(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def choose_process(
    processes: Iterable[ServerProcess], url: str, socket_user: Callable[[int], str | None] = read_socket_user
) -> ServerProcess | None:
    """The process that serves this address.

    By its listening port, else by its OLLAMA_HOST, else the only one of the user whose socket listens there, else
    the only one of which neither may be read.
    """
    if not is_local(url):
        return None
    candidates = list(processes)
    port = urlsplit(url).port
    by_port = [p for p in candidates if p.port == port]
    by_host = [
        p
        for p in candidates
        if p.port is None and p.environ is not None and parse_host(p.environ.get("OLLAMA_HOST")) == url
    ]
    unknown = [p for p in candidates if p.port is None and p.environ is None]
    owner = socket_user(port) if port and len(unknown) > 1 else None
    by_user = [p for p in unknown if p.user is not None and p.user == owner]
    for group in (by_port, by_host, by_user, unknown):
        if len(group) == 1:
            return group[0]
    return None


def models_dir_of(modelfile: str) -> Path | None:
    """The models directory, from the path of the blob that a model's `FROM` line names."""
    match = re.search(r"^FROM (.+?)[/\\]blobs[/\\]sha256-[0-9a-f]{64}\s*$", modelfile, re.MULTILINE)
    return Path(match.group(1).strip('"')) if match else None


def blob_of(modelfile: str) -> Path | None:
    """The GGUF blob that a model's `FROM` line names."""
    match = re.search(r"^FROM (.+[/\\]blobs[/\\]sha256-[0-9a-f]{64})\s*$", modelfile, re.MULTILINE)
    return Path(match.group(1).strip('"')) if match else None


def child_url(argv: Sequence[str]) -> str | None:
    """Address of a llama-server child, from its command line."""
    try:
        return f"http://127.0.0.1:{int(argv[argv.index('--port') + 1])}"
    except (ValueError, IndexError):
        return None
