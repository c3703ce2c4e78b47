"""Which engine a backend would start, told without starting it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

_PROGRAMS = {"ollama": "ollama", "llamacpp": "llama-server"}
_MODULES = {"embedded": "xllamacpp"}


def engine_stamp(backend: str, program: str | None = None) -> str | None:
    """The engine's file, its size and when it was written: another build has another stamp.

    ``program``: that of a running server, where it is known; else the one on PATH. None where there is none.
    """
    found = program
    if found is None and (name := _PROGRAMS.get(backend)) is not None:
        found = shutil.which(name)
    if found is None and (name := _MODULES.get(backend)) is not None:
        spec = importlib.util.find_spec(name)
        found = None if spec is None else spec.origin
    if found is None:
        return None
    try:
        path = Path(os.path.realpath(found))
        status = path.stat()
    except OSError:
        return None
    return f"{backend}:{path}:{status.st_size}:{status.st_mtime_ns}"
