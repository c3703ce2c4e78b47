"""The home of a private Ollama: a temporary directory that goes with it, or, if we are killed, with the next one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from velollm.config import try_lock

_PREFIX = "velollm-ollama-"
_LOCK = ".velollm-lock"
_UNLOCKED = ".velollm-new"


@contextlib.contextmanager
def private_home() -> Iterator[Path]:
    """An empty home until the context is left; those that earlier ones of ours had to leave are removed first."""
    sweep_homes(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name, _held(Path(name)):
        yield Path(name)


def sweep_homes(directory: Path) -> None:
    """Remove homes of private servers that nobody holds any more."""
    for lock in directory.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("ab") as file:
            if try_lock(file.fileno()):
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextlib.contextmanager
def _held(home: Path) -> Iterator[None]:
    """The home is ours until the context is left or we end; its lock has its name only once it is held."""
    with (home / _UNLOCKED).open("ab") as file:
        try_lock(file.fileno())
        with contextlib.suppress(OSError):  # Windows renames no file that is open: nobody sweeps there
            (home / _UNLOCKED).rename(home / _LOCK)
        yield
