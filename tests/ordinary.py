"""Run a part of a test without root's power over permissions."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def ordinary_user() -> Iterator[None]:
    """An ordinary user inside; only root has to change for that."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def public_dir() -> Iterator[Path]:
    """A directory that belongs to the user of `ordinary_user` and can be reached by it."""
    path = Path(tempfile.mkdtemp(prefix="velollm-test-"))
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    path.chmod(0o755)
    try:
        yield path
    finally:
        for found in path.rglob("*"):
            if found.is_dir() and not found.is_symlink():
                found.chmod(0o755)
        shutil.rmtree(path)
