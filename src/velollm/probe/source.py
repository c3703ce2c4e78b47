"""Where a probe reads: this machine, or the captured text of another one.

Every reader of `/proc`, `/sys` or a tool goes through a `Source`, so that a test can be another machine.
"""

from __future__ import annotations

import fnmatch
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_TOOL_TIMEOUT_S = 10.0
_FILE_LIMIT_BYTES = 8 * 1024 * 1024


class Source(Protocol):
    """Text of a machine's files and tools. What cannot be read is None."""

    live: bool

    def read(self, path: str) -> str | None:
        """Text of the file at an absolute path of that machine, such as ``/proc/meminfo``."""

    def glob(self, pattern: str) -> list[str]:
        """Absolute paths of that machine matching a shell pattern, sorted (``/sys/class/drm/card*/device/vendor``)."""

    def run(self, argv: Sequence[str]) -> str | None:
        """Standard output of a command, such as ``["nvidia-smi", "-q", "-x"]``."""


class LiveSource:
    """The machine that this process runs on; ``root`` is for tests that lay out a machine in a folder."""

    live = True

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        try:
            with (self._root / path.lstrip("/")).open("rb") as file:
                return file.read(_FILE_LIMIT_BYTES).decode("utf-8", "replace")
        except OSError:
            return None

    def glob(self, pattern: str) -> list[str]:
        try:
            return sorted("/" + str(p.relative_to(self._root)) for p in self._root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def run(self, argv: Sequence[str]) -> str | None:
        try:
            done = subprocess.run(
                list(argv), capture_output=True, timeout=_TOOL_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


class TextSource:
    """A machine given as texts: ``files`` by absolute path, ``commands`` by their words joined with one blank."""

    live = False

    def __init__(self, files: dict[str, str] | None = None, commands: dict[str, str] | None = None) -> None:
        self.files = files or {}
        self.commands = commands or {}

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def glob(self, pattern: str) -> list[str]:
        wanted = pattern.split("/")
        return sorted(
            path
            for path in self.files
            if len(parts := path.split("/")) == len(wanted)
            and all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
        )

    def run(self, argv: Sequence[str]) -> str | None:
        return self.commands.get(" ".join(argv))
