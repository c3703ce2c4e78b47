from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.ordinary import ordinary_user, public_dir
from velollm.errors import VeloError
from velollm.targets import file
from velollm.targets.base import ABSENT, State
from velollm.targets.file import FileTarget

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def test_reading_tells_bytes_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    path.write_bytes(b"A=1\r\n\xff")
    path.chmod(0o640)
    info = path.stat()
    assert FileTarget(path).read() == State(b"A=1\r\n\xff", 0o640, info.st_uid, info.st_gid)


def test_an_absent_file_tells_which_directories_are_missing(tmp_path: Path) -> None:
    state = FileTarget(tmp_path / "a" / "b" / "x").read()
    assert state == ABSENT
    assert state.missing_dirs == (str(tmp_path / "a"), str(tmp_path / "a" / "b"))


def test_writing_keeps_mode_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    path.chmod(0o604)
    FileTarget(path).write(State(b"new"))
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert names(tmp_path) == ["engine.env"]


def test_a_wanted_mode_is_set_even_against_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        FileTarget(tmp_path / "wanted").write(State(b"", mode=0o666))
        FileTarget(tmp_path / "default").write(State(b""))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "wanted").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "default").stat().st_mode) == 0o600


@as_root
def test_writing_keeps_the_owner_and_special_bits(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    os.chown(path, 65534, 65533)
    path.chmod(0o2640)
    FileTarget(path).write(State(b"new"))
    info = path.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (65534, 65533, 0o2640)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
def test_writing_keeps_extended_attributes(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"me")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    FileTarget(path).write(State(b"new"))
    assert os.getxattr(path, "user.origin") == b"me"


def test_the_old_content_stays_readable_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    target = FileTarget(path)
    target.stage(State(b"new"))
    assert path.read_bytes() == b"old"
    with path.open("rb") as reader:
        target.write(State(b"new"))
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_staged_write_can_be_dropped(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "new" / "engine.env")
    before = target.read()
    target.stage(State(b"new"))
    assert len(names(tmp_path / "new")) == 1
    target.tidy(before)
    assert names(tmp_path) == []


def test_another_state_than_the_staged_one_can_be_written(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "engine.env")
    target.stage(State(b"one"))
    target.write(State(b"two"))
    assert target.read().content == b"two"
    assert names(tmp_path) == ["engine.env"]


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "engine.env"
    FileTarget(path).stage(State(b"half"))
    FileTarget(path).write(State(b"whole"))
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["engine.env"]


def test_removing_takes_made_directories_along_unless_used(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "a" / "b" / "x")
    before = target.read()
    target.write(State(b"1"))
    target.write(before)
    assert names(tmp_path) == []
    target.write(State(b"1"))
    (tmp_path / "a" / "theirs").touch()
    target.write(before)
    assert names(tmp_path) == ["a", "theirs"]
    target.write(before)  # once more, with nothing there


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_file_changes(tmp_path: Path, relative: bool) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "engine.env"
    real.write_bytes(b"old")
    link = tmp_path / "engine.env"
    link.symlink_to("dotfiles/engine.env" if relative else real)
    FileTarget(link).write(State(b"new"))
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert names(tmp_path / "dotfiles") == ["engine.env"]


def test_a_link_to_nothing_gets_its_file_and_loses_it_again(tmp_path: Path) -> None:
    link = tmp_path / "engine.env"
    link.symlink_to("made/engine.env")
    target = FileTarget(link)
    before = target.read()
    assert before == ABSENT
    target.write(State(b"new"))
    assert (tmp_path / "made" / "engine.env").read_bytes() == b"new"
    target.write(before)
    assert names(tmp_path) == ["engine.env"]
    assert link.is_symlink()


def test_a_target_keeps_to_its_file_when_the_link_is_moved(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("one")
    target = FileTarget(link)
    link.unlink()
    link.symlink_to("two")
    FileTarget.from_address(target.address()).write(State(b"restored"))
    assert ((tmp_path / "one").read_text(), (tmp_path / "two").read_text()) == ("restored", "two")


def test_two_ways_to_a_file_are_one_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("engine.env")
    assert FileTarget(tmp_path / "link").key == FileTarget(tmp_path / "engine.env").key
    assert FileTarget(tmp_path / "link").label == str(tmp_path / "link")


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / ("n" * 255))
    target.write(State(b"x"))
    assert target.read().content == b"x"
    with pytest.raises(VeloError, match="too long"):
        FileTarget(tmp_path / ("n" * 256)).write(State(b"x"))
    assert names(tmp_path) == ["n" * 255]


def test_a_name_that_is_no_utf8_is_found_again(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.env"))
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    assert FileTarget.from_address(FileTarget(path).address()).read().content == b""


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(file.LIMIT_BYTES + 1)


@pytest.mark.parametrize("make", [Path.mkdir, make_fifo, make_loop, make_huge], ids=["dir", "pipe", "loop", "huge"])
def test_what_is_no_settings_file_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "engine.env"
    make(path)  # type: ignore[operator]
    with pytest.raises(VeloError) as caught:
        FileTarget(path).read()
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert names(tmp_path) == ["engine.env"]


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("x")
    target = FileTarget(tmp_path / "conf" / "engine.env")
    with pytest.raises(VeloError, match="directory"):
        target.read()
    with pytest.raises(VeloError, match="directory"):
        target.write(State(b"x"))


def test_a_read_only_directory_is_refused_and_nothing_is_left() -> None:
    with public_dir() as directory:
        (directory / "conf").mkdir(mode=0o555)
        with ordinary_user(), pytest.raises(VeloError, match="ermission") as caught:
            FileTarget(directory / "conf" / "new" / "engine.env").write(State(b"x"))
        assert "user" in caught.value.hint
        assert names(directory) == ["conf"]


def test_an_unreadable_file_is_refused() -> None:
    with public_dir() as directory:
        (directory / "engine.env").write_text("x")
        (directory / "engine.env").chmod(0)
        with ordinary_user(), pytest.raises(VeloError, match="cannot read") as caught:
            FileTarget(directory / "engine.env").read()
        assert caught.value.hint


@as_root
def test_a_file_of_another_owner_is_left_as_it_is() -> None:
    with public_dir() as directory:
        path = directory / "engine.env"
        path.write_text("root's")
        path.chmod(0o666)
        with ordinary_user(), pytest.raises(VeloError, match="cannot write") as caught:
            FileTarget(path).write(State(b"x"))
        assert "owner" in caught.value.hint
        assert (path.read_text(), path.stat().st_uid) == ("root's", 0)
        assert names(directory) == ["engine.env"]


def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(VeloError) as caught:
            FileTarget(path).write(State(b"x" * 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.strerror(errno.EFBIG) in caught.value.message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["engine.env"]


def test_an_interrupt_in_mid_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fd: int, data: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FileTarget(tmp_path / "new" / "engine.env").write(State(b"x"))
    assert names(tmp_path) == []


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(source: object, goal: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    path = tmp_path / "engine.env"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", busy)
    for target in (FileTarget(path), FileTarget(tmp_path / "new" / "x")):
        with pytest.raises(VeloError, match="busy") as caught:
            target.write(State(b"new"))
        assert "container" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["engine.env"]
