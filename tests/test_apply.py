from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.crash import (
    META,
    apply_scene,
    count_calls,
    differing,
    fresh,
    lay_scene,
    scene_journal,
    scene_writes,
    snapshot,
    undo_scene,
    watched_calls,
)
from tests.ordinary import ordinary_user, public_dir
from velollm.apply import Conflict, Write, apply_writes, undo_flight
from velollm.errors import VeloError
from velollm.journal import Flight, Journal
from velollm.targets.base import ABSENT, State
from velollm.targets.envfile import render_env
from velollm.targets.file import FileTarget

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def root() -> Iterator[Path]:
    """A laid scene, in memory where there is such a place, since each step waits for the disk."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="velollm-test-", dir=base) as directory:
        place = Path(directory) / "scene"
        lay_scene(place)
        yield place


def write(path: Path, content: bytes | None, expected: State | None = None) -> Write:
    return Write(FileTarget(path), State(content), expected)


def apply(root: Path, *writes: Write) -> Flight:
    flight = apply_writes(writes, scene_journal(root), META)
    assert flight is not None
    return flight


def python(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": f"{REPO / 'src'}{os.pathsep}{REPO}"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO)


def run_kills(root: Path, scenario: str) -> list[dict[str, Any]]:
    child = python(str(REPO / "tests" / "crash.py"), str(root.parent), scenario)
    output = child.communicate(timeout=120)[0]
    assert child.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


# The way there and back


def test_everything_is_written_and_everything_comes_back(root: Path) -> None:
    before = snapshot(root)
    flight = apply_scene(root)
    assert isinstance(flight, Flight)
    assert (flight.status, flight.meta, len(flight.changes)) == ("applied", META, 5)
    for wanted in scene_writes(root):
        assert wanted.target.read().matches(wanted.after)
    result = undo_flight(scene_journal(root))
    assert result.restored == tuple(w.target.label for w in reversed(scene_writes(root)))
    assert (result.conflicts, result.already) == ((), False)
    assert result.flight is not None
    assert result.flight.status == "undone"
    assert snapshot(root) == before


def test_another_process_can_undo(root: Path) -> None:
    before = snapshot(root)
    apply_scene(root)
    code = (
        "import sys, pathlib\nfrom tests.crash import undo_scene\n"
        "print(undo_scene(pathlib.Path(sys.argv[1])).restored[0])"
    )
    child = python("-c", code, str(root))
    assert child.communicate(timeout=60)[0].strip() == str(root / "new" / "velollm.env")
    assert snapshot(root) == before


@given(
    st.binary(max_size=40), st.dictionaries(st.sampled_from("ABC"), st.sampled_from(["", "1", "x y", None]), min_size=1)
)
def test_editing_any_environment_file_is_undone_to_the_byte(content: bytes, changes: dict[str, str | None]) -> None:
    with public_dir() as directory:
        path = directory / "engine.env"
        path.write_bytes(content)
        try:
            after = State.of_text(render_env(FileTarget(path).read().text, changes))
        except VeloError:
            return
        journal = Journal(directory / "journal")
        flight = apply_writes([Write(FileTarget(path), after)], journal, META)
        assert (flight is None) == (after.content == content)
        assert path.read_bytes() == after.content
        undo_flight(journal)
        assert path.read_bytes() == content


def test_nothing_to_undo(tmp_path: Path) -> None:
    result = undo_flight(Journal(tmp_path / "journal"))
    assert (result.flight, result.restored, result.conflicts) == (None, (), ())
    assert list(tmp_path.iterdir()) == []


def test_undoing_twice_is_undoing_once(root: Path) -> None:
    before = snapshot(root)
    flight = apply_scene(root)
    assert isinstance(flight, Flight)
    undo_scene(root)
    assert undo_flight(scene_journal(root)).flight is None
    named = undo_flight(scene_journal(root), flight.id)
    assert (named.already, named.restored) == (True, ())
    assert snapshot(root) == before


def test_an_unknown_flight_is_refused(root: Path) -> None:
    with pytest.raises(VeloError, match="no flight"):
        undo_flight(scene_journal(root), "20261123-231502-a1b2")


def test_flights_come_off_last_first(root: Path) -> None:
    path = root / "conf" / "engine.env"
    before = snapshot(root)
    one = apply(root, write(path, b"one"))
    two = apply(root, write(path, b"two"), write(root / "own", b"x"))
    with pytest.raises(VeloError, match=two.id) as caught:
        undo_flight(scene_journal(root), one.id)
    assert f"velollm undo {two.id}" in caught.value.hint
    assert path.read_bytes() == b"two"
    for flight in (two, one):
        found = undo_flight(scene_journal(root)).flight
        assert found is not None
        assert found.id == flight.id
    assert snapshot(root) == before


def test_a_clock_that_goes_backwards_does_not_mix_up_the_order(root: Path) -> None:
    path, before = root / "conf" / "engine.env", snapshot(root)
    times = iter([datetime(2026, 11, 25, 12, tzinfo=UTC), datetime(2026, 11, 24, 9, tzinfo=UTC)])
    journal = Journal(root / "journal", clock=lambda: next(times))
    one, two = (apply_writes([write(path, content)], journal, META) for content in (b"one", b"two"))
    assert one is not None
    assert two is not None
    assert two.time < one.time
    with pytest.raises(VeloError, match=two.id):
        undo_flight(journal, one.id)
    assert [undone.flight and undone.flight.id for undone in (undo_flight(journal), undo_flight(journal))] == [
        two.id,
        one.id,
    ]
    assert snapshot(root) == before


def test_flights_over_other_places_come_off_in_any_order(root: Path) -> None:
    before = snapshot(root)
    one = apply(root, write(root / "conf" / "engine.env", b"one"))
    apply(root, write(root / "conf" / "old.conf", b"two"))
    assert undo_flight(scene_journal(root), one.id).restored == (str(root / "conf" / "engine.env"),)
    undo_flight(scene_journal(root))
    assert snapshot(root) == before


def test_places_that_are_as_wanted_are_left_out(root: Path) -> None:
    path = root / "conf" / "engine.env"
    same = write(path, path.read_bytes())
    assert apply_writes([same, write(root / "absent", None)], scene_journal(root), META) is None
    assert scene_journal(root).read_flights() == []
    flight = apply(root, same, write(root / "conf" / "old.conf", b"x"))
    assert [change.label for change in flight.changes] == [str(root / "conf" / "old.conf")]


def test_a_change_of_mode_alone_is_a_change(root: Path) -> None:
    path = root / "conf" / "engine.env"
    before = snapshot(root)
    apply(root, Write(FileTarget(path), State(path.read_bytes(), mode=0o600)))
    assert path.stat().st_mode & 0o777 == 0o600
    undo_scene(root)
    assert snapshot(root) == before


def test_one_place_cannot_be_written_twice_in_a_flight(root: Path) -> None:
    link, real = root / "conf" / "engine.yaml", root / "dotfiles" / "engine.yaml"
    with pytest.raises(ValueError, match="same place"):
        apply(root, write(link, b"1"), write(real, b"2"))


def test_each_step_is_told_after_it_was_done(root: Path) -> None:
    path, told = root / "conf" / "engine.env", []

    def listen(step: str) -> None:
        flight = scene_journal(root).read_flights()[0]
        told.append((step, path.read_bytes() == b"x", len(flight.changes), any(c.undone for c in flight.changes)))

    apply_writes([write(path, b"x")], scene_journal(root), META, listen)
    undo_flight(scene_journal(root), on_step=listen)
    assert told == [
        ("before 0", False, 1, False),
        ("stage 0", False, 1, False),
        ("write 0", True, 1, False),
        ("done 0", True, 1, False),
        ("end", True, 1, False),
        ("restore 0", False, 1, False),
        ("undone 0", False, 1, True),
    ]


def test_no_place_is_touched_before_its_record_is_durable(root: Path) -> None:
    log: list[tuple[str, str]] = []

    def note(_number: int, name: str, args: tuple[Any, ...]) -> None:
        path = str(Path(f"/proc/self/fd/{args[0]}").readlink() if isinstance(args[0], int) else args[0])
        log.append((name, "journal" if path.startswith(str(root / "journal")) else "place"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    with watched_calls(note):
        apply_scene(root)
    first_place = next(n for n, (name, where) in enumerate(log) if where == "place" and name != "fsync")
    journal_calls = [name for name, where in log[:first_place] if where == "journal" and name in ("write", "fsync")]
    assert journal_calls.count("write") == 1 + 5 + 1  # begin, one for each place, the reserved space
    assert journal_calls[-1] == "fsync"
    first_rename = log.index(("replace", "place"))
    staged = [name for name, where in log[:first_rename] if where == "place"]
    assert staged.count("open") == 4  # all new contents are on the disk before the first old one goes
    assert "fsync" in staged[-2:]


# Killed


def test_killed_at_every_call_of_apply(root: Path) -> None:
    results = run_kills(root, "apply")
    assert len(results) >= 60
    assert [r for r in results if not r["killed"] or r["undo"] != 0 or r["differs"]] == []


def test_killed_at_every_call_of_undo(root: Path) -> None:
    results = run_kills(root, "undo")
    assert len(results) >= 60
    assert [r for r in results if not r["killed"] or r["undo"] != 0 or r["differs"]] == []


def test_a_killed_flight_is_told_as_interrupted_and_the_next_may_fly(root: Path) -> None:
    before = snapshot(root)
    code = (
        "import os, signal, sys, pathlib\nfrom tests.crash import *\nroot = pathlib.Path(sys.argv[1])\n"
        "def step(name):\n    if name == 'write 1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "apply_writes(scene_writes(root), scene_journal(root), META, step)"
    )
    child = python("-c", code, str(root))
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert [flight.status for flight in scene_journal(root).read_flights()] == ["interrupted"]
    apply(root, write(root / "conf" / "old.conf", b"the next"))
    undo_scene(root)
    assert (root / "conf" / "engine.env").read_bytes() == scene_writes(root)[0].after.content
    undo_scene(root)
    assert snapshot(root) == before


# Failed


def faults(error: BaseException, number: int, lasting: bool = False) -> Any:
    def hook(count: int, name: str, _args: tuple[Any, ...]) -> None:
        if count == number or (lasting and count > number and name == "write"):
            raise error

    return watched_calls(hook)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failure_at_any_call_leaves_all_or_nothing(root: Path, number: int) -> None:
    failed = 0
    for failing in range(1, len(count_calls(lambda: apply_scene(root))) + 1):
        before = fresh(root)
        try:
            with faults(OSError(number, os.strerror(number)), failing):
                apply_scene(root)
        except VeloError as error:
            failed += 1
            assert error.hint
            assert differing(before, snapshot(root)) == []
            assert not any(flight.open for flight in scene_journal(root).read_flights())
        else:
            undo_scene(root)
            assert differing(before, snapshot(root)) == []
    assert failed >= 40


def test_an_interrupt_at_any_call_puts_everything_back(root: Path) -> None:
    finished = 0
    for failing in range(1, len(count_calls(lambda: apply_scene(root))) + 1):
        before = fresh(root)
        with contextlib.suppress(KeyboardInterrupt), faults(KeyboardInterrupt(), failing):
            apply_scene(root)
        flights = scene_journal(root).read_flights()
        if flights and flights[0].complete:
            finished += 1
            undo_scene(root)
        assert differing(before, snapshot(root)) == []
    assert 0 < finished < failing / 4


def test_where_putting_back_fails_too_the_error_says_what_finishes_it(root: Path) -> None:
    stuck = 0
    names = count_calls(lambda: apply_scene(root))
    for failing in range(1, len(names) + 1):
        before = fresh(root)
        with faults(OSError(errno.ENOSPC, "No space left on device"), failing, lasting=True):
            try:
                apply_scene(root)
            except VeloError as error:
                if differing(before, snapshot(root)):
                    stuck += 1
                    assert "could not be put back" in error.message
                    assert f"velollm undo {scene_journal(root).read_flights()[0].id}" in error.hint
        undo_scene(root)
        assert differing(before, snapshot(root)) == []
    assert stuck > 0


def test_a_full_disk_stops_a_flight_before_it_changes_anything(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    small = tmp_path / "small"
    small.mkdir()
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "none", small], capture_output=True).returncode
    ):
        pytest.skip("a small file system of our own cannot be mounted here")
    try:
        outcomes = [apply_on_full_disk(small, free) for free in range(0, 20 * 4096, 2048)]
    finally:
        subprocess.run(["umount", small], check=True)
    assert outcomes[0] == "full"
    assert outcomes[-1] == "applied"
    assert outcomes == sorted(outcomes, reverse=True)  # full up to some point, applied from there on


def apply_on_full_disk(small: Path, free: int) -> str:
    root, filler = small / "scene", small / "filler"
    filler.unlink(missing_ok=True)
    before = fresh(root)
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    size = 0
    with contextlib.suppress(OSError):
        while True:
            size += os.write(fd, bytes(1024))
    os.ftruncate(fd, max(0, size - free))
    os.close(fd)
    try:
        apply_scene(root)
    except VeloError as error:
        assert "space" in error.hint
        assert differing(before, snapshot(root)) == []
        return "full"
    undo_scene(root)
    assert differing(before, snapshot(root)) == []
    return "applied"


def test_a_read_only_place_is_refused_and_the_others_are_as_before() -> None:
    with public_dir() as directory, ordinary_user():
        (directory / "free").mkdir()
        (directory / "closed").mkdir(mode=0o555)
        before = snapshot(directory)
        writes = [write(directory / "free" / "a", b"1"), write(directory / "closed" / "b", b"2")]
        with pytest.raises(VeloError, match="closed/b") as caught:
            apply_writes(writes, Journal(directory / "journal"), META)
        assert caught.value.hint
        assert snapshot(directory) == before


def test_a_place_that_does_not_keep_what_is_written_is_put_back(root: Path) -> None:
    class Forgetful(FileTarget):
        def write(self, state: State) -> None:
            super().write(State(b"# my own idea\n") if state.content == b"x" else state)

    before = snapshot(root)
    first = write(root / "conf" / "old.conf", b"new")
    with pytest.raises(VeloError, match="did not keep"):
        apply(root, first, Write(Forgetful(root / "conf" / "engine.env"), State(b"x")))
    assert differing(before, snapshot(root)) == ["conf/engine.env"]  # not ours, so it is left alone
    assert scene_journal(root).read_flights()[0].status == "conflict"


# Changed by somebody else


def test_a_change_since_the_plan_is_refused(root: Path) -> None:
    path = root / "conf" / "engine.env"
    seen = FileTarget(path).read()
    path.write_bytes(b"theirs")
    before = snapshot(root)
    with pytest.raises(VeloError, match="changed since the plan") as caught:
        apply(root, write(root / "conf" / "old.conf", b"x"), write(path, b"ours", seen))
    assert caught.value.hint
    assert snapshot(root) == before
    assert scene_journal(root).read_flights() == []


def test_a_file_that_came_since_the_plan_is_not_overwritten(root: Path) -> None:
    path = root / "fresh"
    seen = FileTarget(path).read()
    path.write_bytes(b"theirs")
    with pytest.raises(VeloError, match="changed since"):
        apply(root, write(path, b"ours", seen))
    assert path.read_bytes() == b"theirs"


def test_a_change_in_mid_flight_is_left_alone_and_the_rest_put_back(root: Path) -> None:
    path = root / "conf" / "engine.env"
    before = snapshot(root)

    def meddle(step: str) -> None:
        if step == "done 0":
            path.write_bytes(b"theirs")

    writes = [write(root / "conf" / "old.conf", b"x"), write(path, b"ours")]
    with pytest.raises(VeloError, match="changed since"):
        apply_writes(writes, scene_journal(root), META, meddle)
    assert differing(before, snapshot(root)) == ["conf/engine.env"]
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("theirs", [b"theirs", None], ids=["edited", "removed"])
def test_undo_leaves_a_changed_place_alone_and_says_so(root: Path, theirs: bytes | None) -> None:
    before = snapshot(root)
    apply_scene(root)
    path = root / "new" / "service.d" / "velollm.conf" if theirs else root / "conf" / "engine.env"
    path.write_bytes(theirs) if theirs else path.unlink()
    kept = snapshot(root).get(str(path.relative_to(root)))
    result = undo_flight(scene_journal(root))
    assert result.conflicts == (Conflict(str(path), "it was changed by somebody else since"),)
    assert len(result.restored) == 4
    assert snapshot(root).get(str(path.relative_to(root))) == kept
    expected = {"new", "new/service.d", "new/service.d/velollm.conf"} if theirs else {"conf/engine.env"}
    assert set(differing(before, snapshot(root))) == expected
    assert result.flight is not None
    assert result.flight.status == "conflict"
    assert undo_flight(scene_journal(root)).flight is None  # the next undo goes on to older flights


def test_a_settled_conflict_can_be_undone_by_name(root: Path) -> None:
    path = root / "conf" / "engine.env"
    before = snapshot(root)
    flight = apply(root, write(path, b"ours"))
    path.write_bytes(b"theirs")
    undo_scene(root)
    path.write_bytes(b"ours")
    assert undo_flight(scene_journal(root), flight.id).restored == (str(path),)
    assert snapshot(root) == before


def test_a_place_that_was_put_back_by_hand_is_settled(root: Path) -> None:
    path = root / "conf" / "engine.env"
    old = path.read_bytes()
    apply(root, write(path, b"ours"))
    path.write_bytes(old)
    result = undo_flight(scene_journal(root))
    assert (result.restored, result.conflicts) == ((), ())
    assert result.flight is not None
    assert result.flight.undone


def test_a_mode_that_somebody_set_since_is_kept(root: Path) -> None:
    path = root / "conf" / "engine.env"
    old = path.read_bytes()
    apply(root, write(path, b"ours"), Write(FileTarget(root / "fresh"), State(b"x", mode=0o600)))
    path.chmod(0o600)
    (root / "fresh").chmod(0o644)
    assert len(undo_flight(scene_journal(root)).restored) == 2
    assert path.read_bytes() == old
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (root / "fresh").exists()


def test_a_link_that_was_moved_since_does_not_mislead_undo(root: Path) -> None:
    link = root / "conf" / "engine.yaml"
    old = link.read_bytes()
    apply(root, write(link, b"ours"))
    (root / "other.yaml").write_bytes(b"ours")
    link.unlink()
    link.symlink_to("../other.yaml")
    undo_scene(root)
    assert (root / "dotfiles" / "engine.yaml").read_bytes() == old
    assert (root / "other.yaml").read_bytes() == b"ours"
    assert link.readlink() == Path("../other.yaml")


def test_undo_does_the_rest_when_one_place_cannot_be_written(root: Path) -> None:
    before = snapshot(root)
    flight = apply(root, write(root / "conf" / "engine.env", b"1"), write(root / "own" / "x", b"2"))
    shutil.rmtree(root / "own")
    (root / "own").write_text("a file, where a directory was")
    with pytest.raises(VeloError, match="not wholly undone") as caught:
        undo_flight(scene_journal(root))
    assert caught.value.hint
    assert differing(before, snapshot(root)) == ["own"]
    (root / "own").unlink()
    assert undo_flight(scene_journal(root), flight.id).flight is not None
    assert snapshot(root) == before


# Two at once, and other versions


def test_two_runs_do_not_interleave(root: Path) -> None:
    before = snapshot(root)
    apply_scene(root)
    applied = snapshot(root)
    code = (
        "import sys, pathlib\nfrom tests.crash import scene_journal\n"
        "with scene_journal(pathlib.Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    child = python("-c", code, str(root))
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    for act in (lambda: apply(root, write(root / "x", b"1")), lambda: undo_flight(scene_journal(root))):
        with pytest.raises(VeloError, match="another VeloLLM run"):
            act()
    assert snapshot(root) == applied
    child.kill()  # a killed run holds nothing
    child.communicate(timeout=60)
    undo_scene(root)
    assert snapshot(root) == before


def test_the_lock_is_free_after_a_failure(root: Path) -> None:
    with pytest.raises(VeloError):
        apply(root, write(root / "conf", b"a directory is there"))
    apply(root, write(root / "x", b"1"))


def edit_journal(root: Path, flight: Flight, old: str, new: str) -> None:
    path = root / "journal" / f"{flight.id}.jsonl"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_flight_of_a_newer_version_is_left_to_that_version(root: Path) -> None:
    flight = apply(root, write(root / "x", b"1"))
    edit_journal(root, flight, '"schema_version": 1', '"schema_version": 2')
    with pytest.raises(VeloError, match="newer"):
        undo_flight(scene_journal(root))
    assert (root / "x").read_bytes() == b"1"


def test_a_place_of_an_unknown_kind_does_not_keep_the_others(root: Path) -> None:
    flight = apply(root, write(root / "x", b"1"), write(root / "y", b"2"))
    edit_journal(root, flight, f'"path": "{root}/x"', '"oath": "?"')
    with pytest.raises(VeloError, match="not wholly undone"):
        undo_flight(scene_journal(root))
    assert (root / "x").exists()
    assert not (root / "y").exists()


def test_a_damaged_record_is_told_and_the_rest_undone(root: Path) -> None:
    flight = apply(root, write(root / "x", b"1"), write(root / "y", b"2"))
    edit_journal(root, flight, '"number": 0, "target"', '"number": "?", "target"')
    result = undo_flight(scene_journal(root))
    assert result.restored == (str(root / "y"),)
    assert result.flight is not None
    assert result.flight.damage is not None
    assert FileTarget(root / "y").read() == ABSENT
