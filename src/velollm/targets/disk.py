"""The few file system steps that settings and journal share, and what their failures mean to a person."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from velollm.errors import VeloError

_HINTS = {
    errno.ENOSPC: "free some space on that disk, then try again",
    errno.EDQUOT: "your disk quota is used up: free some space, then try again",
    errno.EFBIG: "the limit for file sizes was reached (see `ulimit -f`)",
    errno.EACCES: "run it as a user who may read and write there, or choose another place with VELOLLM_HOME",
    errno.EPERM: "run it as the owner of that file",
    errno.EROFS: "that file system is read-only: choose another place with VELOLLM_HOME",
    errno.ENOTDIR: "a part of that path is a file, where a directory was expected",
    errno.EISDIR: "there is a directory, where a file was expected",
    errno.ELOOP: "its symbolic links lead in a circle: mend the links",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EBUSY: "something holds that file (it may be mounted into a container by itself): "
    "mount its directory instead",
    errno.EMFILE: "too many files are open: see `ulimit -n`",
}


def disk_error(doing: str, path: str | Path, error: OSError) -> VeloError:
    """The `VeloError` for a failed step on a path; ``doing`` is such as ``read`` or ``write``."""
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0, "look at that place: `ls -ld` shows what is there and whose it is")
    return VeloError(f"cannot {doing} {path}: {reason}", hint)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however many calls the system needs. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_dir(path: str | Path) -> None:
    """Make names that were added to or removed from a directory durable. Raises `OSError`.

    Windows has no such step, some network file systems refuse it, and a directory may be writable but not
    readable: there the system's own care has to do.
    """
    if sys.platform == "win32":
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def missing_dirs(path: str | Path) -> tuple[str, ...]:
    """The parents of a path that do not exist, outermost first. Raises `OSError`."""
    found: list[str] = []
    for parent in Path(path).parents:
        try:
            parent.stat()
            break
        except FileNotFoundError:
            found.append(str(parent))
    return tuple(reversed(found))


def make_dirs(paths: tuple[str, ...]) -> None:
    """Make these directories, outermost first, each durable before the next. Raises `OSError`."""
    for path in paths:
        Path(path).mkdir(exist_ok=True)
        sync_dir(Path(path).parent)


def remove_empty_dirs(paths: tuple[str, ...]) -> None:
    """Remove those of these directories that are there and empty, innermost first; never raises."""
    for path in reversed(paths):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
