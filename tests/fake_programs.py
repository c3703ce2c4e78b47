"""Programs of other machines, as files on PATH: they keep their state in a directory, as the real ones do elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# What launchctl(1) says of these words; `getenv` of what is not set prints nothing.
LAUNCHCTL = """#!/bin/sh
case "$1" in
getenv) if [ -f "$FAKE_LAUNCHD/$2" ]; then cat "$FAKE_LAUNCHD/$2"; echo; fi ;;
setenv) printf %s "$3" > "$FAKE_LAUNCHD/.new" && mv "$FAKE_LAUNCHD/.new" "$FAKE_LAUNCHD/$2" ;;
unsetenv) rm -f "$FAKE_LAUNCHD/$2" ;;
esac
"""
SUDO = """#!/bin/sh
while [ "$1" = -n ] || [ "$1" = -u ]; do
  if [ "$1" = -u ]; then shift; fi
  shift
done
exec "$@"
"""
ALL: Mapping[str, str] = {"launchctl": LAUNCHCTL, "sudo": SUDO}


def lay_programs(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in ALL.items():
        path = directory / name
        path.write_text(text)
        path.chmod(0o755)


@contextmanager
def programs_on_path(directory: Path) -> Iterator[None]:
    """The programs come first on PATH inside."""
    lay_programs(directory)
    kept = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}{os.pathsep}{kept}"
    try:
        yield
    finally:
        os.environ["PATH"] = kept
