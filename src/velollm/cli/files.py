"""Files that a command writes beside what it prints: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from velollm.errors import UsageError

_HINT = "name a file that you may write to"


def check_writable(path: Path | None) -> None:
    """Find out before a long measurement that its result could not be written.

    Raises:
        UsageError: ``path`` is a directory, or there is none around it that may be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory", _HINT)
    folder = _real(path).parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {folder}", _HINT)
    place = _real(path) if _is_special(path) else folder
    if not os.access(place, os.W_OK):
        raise UsageError(f"cannot write {path}: {place} may not be written to", _HINT)


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text; after a failure or a kill, ``path`` holds what it held before.

    A pipe or a device is written to as it is.

    Raises:
        UsageError: it cannot be written.
    """
    real = _real(path)
    temporary = real.with_name(f".{real.name[:100]}.{os.urandom(4).hex()}.tmp")
    try:
        if _is_special(path):
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        try:
            _write_synced(temporary, text)
            if real.exists():
                temporary.chmod(real.stat().st_mode & 0o777)
            temporary.replace(real)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", _HINT) from error


def _write_synced(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _real(path: Path) -> Path:
    """The file itself, should ``path`` be a link to it."""
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()
