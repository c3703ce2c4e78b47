"""What the places outside our own files are reached through: programs of the machine, and who we are on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from velollm.errors import VeloError

_PATIENCE_S = 180.0  # systemd gives a service 90 s to stop, and as long to start (DefaultTimeoutStopSec=)


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it wrote."""

    status: int
    out: str = ""
    err: str = ""


Run = Callable[[Sequence[str], bytes | None, Mapping[str, str] | None], Done]
"""Runs a program to its end: its words, its standard input, and its whole environment (None: ours)."""


def run_program(argv: Sequence[str], data: bytes | None = None, environ: Mapping[str, str] | None = None) -> Done:
    """Run a program of this machine. A password prompt (sudo) is between it and the terminal.

    Raises:
        VeloError: there is no such program, or it does not end.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=b"" if data is None else data,
            env=None if environ is None else dict(environ),
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VeloError(f"`{argv[0]}` did not end within {_PATIENCE_S:.0f} s", "run it by hand and look") from error
    except OSError as error:
        raise VeloError(f"cannot start {argv[0]}: {error.strerror}", f"is {argv[0]} installed?") from error
    return Done(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode("utf-8", "replace"))


def is_root() -> bool:
    """May we write everywhere?"""
    return sys.platform != "win32" and os.geteuid() == 0


@dataclass(frozen=True)
class System:
    """The machine as targets meet it; a test can be another one.

    ``etc`` is where its settings are, ``proc`` its processes. ``root``: we may write everywhere. ``terminal``: a
    person can be asked for a password.
    """

    run: Run = run_program
    which: Callable[[str], str | None] = shutil.which
    platform: str = sys.platform
    root: bool = field(default_factory=is_root)
    terminal: bool = field(default_factory=lambda: sys.stdin is not None and sys.stdin.isatty())
    home: Path = field(default_factory=Path.home)
    etc: Path = Path("/etc")
    proc: Path = Path("/proc")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def config(self) -> Path:
        """Where the user's programs keep their settings (XDG Base Directory Specification)."""
        given = self.environ.get("XDG_CONFIG_HOME", "")
        return Path(given) if given.startswith("/") else self.home / ".config"

    @property
    def sudo(self) -> tuple[str, ...] | None:
        """Words before a command that root must run; none where we are root, None where sudo is not here."""
        if self.root:
            return ()
        if self.which("sudo") is None:
            return None
        return ("sudo",) if self.terminal else ("sudo", "-n")

    def as_root(self, words: Sequence[str]) -> tuple[str, ...]:
        """A command as we have to give it now, so that root runs it; without `sudo` it is as root would type it."""
        return (*(self.sudo or ()), *words)

    def may_sudo(self) -> bool:
        """Can a command be run as root: because we are, somebody can type a password, or none is needed?"""
        words = self.sudo
        if not words or self.terminal:
            return words is not None
        return self.run([*words, "true"], None, None).status == 0

    def text_of(self, argv: Sequence[str]) -> str | None:
        """Standard output of a program; None where it is not here or failed."""
        try:
            done = self.run(argv, None, None)
        except VeloError:
            return None
        return done.out if done.status == 0 else None


def run_or_raise(run: Run, argv: Sequence[str], data: bytes | None = None, hint: str = "") -> str:
    """Output of a program that must succeed. Raises `VeloError` with what it said."""
    done = run(argv, data, None)
    if done.status:
        said = (done.err.strip() or done.out.strip()).splitlines()
        raise VeloError(
            f"`{' '.join(argv)}` failed: {said[-1] if said else f'exit status {done.status}'}",
            hint or "run that command by hand and look",
        )
    return done.out
