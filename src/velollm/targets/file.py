"""A file as a place for settings: replaced in one step, restored to the byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

from velollm.errors import VeloError
from velollm.targets.base import Address, State, Target
from velollm.targets.disk import disk_error, make_dirs, missing_dirs, remove_empty_dirs, sync_dir, write_all

# A settings file has a few kilobytes; what is far larger is something else, and the journal keeps a whole copy.
LIMIT_BYTES = 16 * 1024**2


class FileTarget(Target):
    """A settings file.

    Writing makes a temporary file beside it, with mode, owner and extended attributes of the old one, and renames
    it over the old one. A symbolic link stays: the file that it leads to is replaced. That file is fixed when the
    target is made (``real``), so undo restores the file that was changed even if the link leads elsewhere by then.
    Other hard links keep the old content. A file that is restored after it was removed has no extended attributes.
    """

    kind = "file"

    def __init__(self, path: Path, real: Path | None = None) -> None:
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link
        self._real = Path(os.path.realpath(self._path)) if real is None else real
        self._staged: State | None = None
        self._made: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where a person sees it."""
        return self._path

    @property
    def real(self) -> Path:
        """The file itself, behind any link that stood there when the target was made."""
        return self._real

    @property
    def label(self) -> str:
        return str(self._path)

    @property
    def key(self) -> str:
        return f"file:{self._real}"

    def address(self) -> Address:
        return {"kind": self.kind, "path": str(self._path), "real": str(self._real)}

    @classmethod
    def from_address(cls, address: Address) -> FileTarget:
        path, real = address.get("path"), address.get("real")
        if not isinstance(path, str) or not isinstance(real, str):
            raise VeloError("the journal's address of a file is damaged", "restore that file by hand")
        return cls(Path(path), Path(real))

    def read(self) -> State:
        place = self._place()
        try:
            return _read_file(place)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise disk_error("read", self.label, error) from error
        try:
            return State(None, missing_dirs=missing_dirs(place))
        except OSError as error:
            raise disk_error("read", self.label, error) from error

    def stage(self, state: State) -> None:
        """Write the temporary file, fully and durably; on failure it is gone again, and made directories too."""
        if state.content is None:
            return
        place = self._place()
        try:
            self._made = missing_dirs(place)
            make_dirs(self._made)
            _write_temporary(place, state, state.content)
        except OSError as error:
            self._discard(place, self._made)
            raise disk_error("write", self.label, error) from error
        except BaseException:
            self._discard(place, self._made)
            raise
        self._staged = state

    def write(self, state: State) -> None:
        place = self._place()
        if state.content is None:
            self._remove(place, state)
            return
        if self._staged != state:
            self.stage(state)
        try:
            temporary_of(place).replace(place)
        except OSError as error:
            self._discard(place, self._made)
            raise disk_error("write", self.label, error) from error
        self._staged, self._made = None, ()
        try:
            sync_dir(place.parent)
        except OSError as error:
            raise disk_error("write", self.label, error) from error

    def tidy(self, before: State) -> None:
        self._discard(self._place(), before.missing_dirs)

    def _place(self) -> Path:
        """The file itself, should a link stand there by now."""
        return Path(os.path.realpath(self._real))

    def _remove(self, place: Path, state: State) -> None:
        try:
            place.unlink(missing_ok=True)
            if place.parent.is_dir():
                sync_dir(place.parent)
        except OSError as error:
            raise disk_error("remove", self.label, error) from error
        self._discard(place, state.missing_dirs)

    def _discard(self, place: Path, made: tuple[str, ...]) -> None:
        self._staged, self._made = None, ()
        with contextlib.suppress(OSError):
            temporary_of(place).unlink()
        remove_empty_dirs(made)


target = FileTarget


def temporary_of(place: Path) -> Path:
    """The temporary file of a place: always the same one, so that what a killed run left is found and removed."""
    name = hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]
    return place.with_name(f".velollm-{name}.tmp")


def _read_file(place: Path) -> State:
    """Content, mode and owner of a regular file. Raises `OSError`; `VeloError` where it is no file of settings."""
    if not stat.S_ISREG(place.stat().st_mode):  # opening a pipe would wait for ever
        raise VeloError(f"{place} is not a regular file", "name a file for the settings")
    fd = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(fd, "rb") as stream:
        info = os.fstat(fd)
        content = stream.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise VeloError(f"{place} is larger than a settings file can be", "name a file for the settings")
    return _with_owner(State(content), info)


def _with_owner(state: State, info: os.stat_result) -> State:
    """The state with mode and owner of ``info`` wherever it names none itself."""
    if sys.platform == "win32":
        return state
    return replace(
        state,
        mode=stat.S_IMODE(info.st_mode) if state.mode is None else state.mode,
        uid=info.st_uid if state.uid is None else state.uid,
        gid=info.st_gid if state.gid is None else state.gid,
    )


def _write_temporary(place: Path, state: State, content: bytes) -> None:
    """A durable temporary file with these bytes and the state's mode and owner. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        state = _with_owner(state, place.stat())
    temporary = temporary_of(place)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(temporary, flags, 0o644 if state.mode is None else 0o600)
    try:
        write_all(fd, content)
        _copy_attributes(place, temporary)
        _set_owner(fd, state)
        os.fsync(fd)
    finally:
        os.close(fd)


def _set_owner(fd: int, state: State) -> None:
    """Give an open file the state's owner and mode, in this order, since a change of owner clears mode bits."""
    if sys.platform == "win32":
        return
    info = os.fstat(fd)
    uid = info.st_uid if state.uid is None else state.uid
    gid = info.st_gid if state.gid is None else state.gid
    if (uid, gid) != (info.st_uid, info.st_gid):
        os.fchown(fd, uid, gid)
    if state.mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != state.mode:
        os.fchmod(fd, state.mode)


def _copy_attributes(source: Path, goal: Path) -> None:
    """Carry extended attributes (access lists, labels) over, as far as the system allows."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            with contextlib.suppress(OSError):
                os.setxattr(goal, name, os.getxattr(source, name))
