from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from velollm.targets.disk import disk_error, make_dirs, missing_dirs, remove_empty_dirs, sync_dir, write_all


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "space"), (errno.EROFS, "read-only"), (errno.EACCES, "user"), (errno.EIO, "ls -ld")],
)
def test_an_error_says_what_where_and_how_to_mend_it(number: int, word: str) -> None:
    error = disk_error("write", "/etc/engine.env", OSError(number, os.strerror(number)))
    assert error.message == f"cannot write /etc/engine.env: {os.strerror(number)}"
    assert word in error.hint


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with (tmp_path / "x").open("wb") as stream:
        write_all(stream.fileno(), b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_directories_are_made_and_only_empty_ones_removed(tmp_path: Path) -> None:
    missing = missing_dirs(tmp_path / "a" / "b" / "c" / "file")
    assert missing == tuple(str(tmp_path / part) for part in ("a", "a/b", "a/b/c"))
    make_dirs(missing)
    assert missing_dirs(tmp_path / "a" / "b" / "c" / "file") == ()
    (tmp_path / "a" / "theirs").touch()
    remove_empty_dirs(missing)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["theirs"]


def test_a_file_system_without_directory_sync_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL
    sync_dir(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_dir(tmp_path)
