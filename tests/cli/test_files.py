"""A file is whole or as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from velollm.cli.files import check_writable, write_whole
from velollm.errors import UsageError

posix = pytest.mark.skipif(os.name == "nt", reason="links and modes as POSIX has them")


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    check_writable(path)
    write_whole(path, "ä\nb\n")
    assert path.read_bytes() == "ä\nb\n".encode()
    assert [item.name for item in tmp_path.iterdir()] == ["page.html"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["page.html"]


@posix
def test_a_link_and_the_mode_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    real.write_text("old", encoding="utf-8")
    real.chmod(0o640)
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@posix
def test_a_device_is_not_replaced() -> None:
    check_writable(Path(os.devnull))
    write_whole(Path(os.devnull), "gone")
    assert not Path(os.devnull).is_file()


def test_what_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    check_writable(None)
    for path, why in ((tmp_path, "it is a directory"), (tmp_path / "none" / "page.html", "there is no directory")):
        with pytest.raises(UsageError, match=why):
            check_writable(path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="there is no directory"):
        check_writable(tmp_path / "file" / "page.html")
    with pytest.raises(UsageError, match="cannot write"):
        write_whole(tmp_path / "none" / "page.html", "text")


@posix
def test_a_directory_without_the_right_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="may not be written to"):
        check_writable(tmp_path / "page.html")
