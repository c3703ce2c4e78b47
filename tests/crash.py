"""Kill a child with SIGKILL at each of its changing system calls, then let a fresh process undo what it left.

Run as a program, so that forking happens in a process with one thread: `python tests/crash.py DIRECTORY SCENARIO`
prints one JSON line for each kill. Imported, it gives the scenes and the system call hook to other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from velollm.apply import Write, apply_writes, undo_flight
from velollm.journal import FlightMeta, Journal
from velollm.targets.base import ABSENT, State, target_from_address
from velollm.targets.file import FileTarget

META = FlightMeta("0.1.0", "embedded", "made-1b", "one test flight", {"verdict": "faster"})
# What can change a file system; `open` counts where it creates.
CALLS = ("open", "mkdir", "rmdir", "unlink", "replace", "write", "fsync", "fchmod", "fchown", "ftruncate", "setxattr")
Snapshot = dict[str, tuple[object, ...]]
Hook = Callable[[int, str, tuple[Any, ...]], None]


def lay_scene(root: Path) -> None:
    """Files of every sort: CRLF without a final line end, a link into another directory, modes, an owner."""
    (root / "conf").mkdir(parents=True)
    (root / "dotfiles").mkdir()
    (root / "conf" / "engine.env").write_bytes(b"# mine\r\nexport A='1'\r\nB=2")
    (root / "conf" / "engine.env").chmod(0o640)
    (root / "dotfiles" / "engine.yaml").write_bytes(b"models: {}\n\xff\xfe not UTF-8")
    (root / "dotfiles" / "engine.yaml").chmod(0o604)
    (root / "conf" / "engine.yaml").symlink_to("../dotfiles/engine.yaml")
    (root / "conf" / "old.conf").write_bytes(b"going away\n")
    if os.geteuid() == 0:
        os.chown(root / "conf" / "engine.env", 65534, 65533)
        os.chown(root / "conf" / "old.conf", 65534, 65534)


def scene_writes(root: Path) -> list[Write]:
    """One write of each sort: replace, through a link, remove, two new files in directories that are not there."""
    return [
        Write(FileTarget(root / "conf" / "engine.env"), State(b"# mine\r\nexport A='9'\r\nB=2")),
        Write(FileTarget(root / "conf" / "engine.yaml"), State(b"models: {m: {threads: 2}}\n")),
        Write(FileTarget(root / "conf" / "old.conf"), ABSENT),
        Write(FileTarget(root / "new" / "service.d" / "velollm.conf"), State(b"[Service]\n", mode=0o600)),
        Write(FileTarget(root / "new" / "velollm.env"), State(b"X=1\n")),
    ]


def scene_journal(root: Path) -> Journal:
    return Journal(root / "journal")


def snapshot(root: Path) -> Snapshot:
    """Every path under a directory except the journal: sort, mode, owner, and bytes or link."""
    found: Snapshot = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.relative_to(root).parts[0] == "journal":
            continue
        info = path.lstat()
        content: object = None
        if stat.S_ISLNK(info.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        found[name] = (stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, content)
    return found


def differing(one: Snapshot, other: Snapshot) -> list[str]:
    """Paths that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@contextmanager
def watched_calls(hook: Hook) -> Iterator[None]:
    """Call ``hook(number, name, arguments)`` before each changing system call, counted from 1."""
    count = 0
    kept = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if name != "open" or args[1] & os.O_CREAT:
                count += 1
                hook(count, name, args)
            return real(*args, **kwargs)

        return call

    for name, real in kept.items():
        setattr(os, name, wrap(name, real))
    try:
        yield
    finally:
        for name, real in kept.items():
            setattr(os, name, real)


def count_calls(act: Callable[[], object]) -> list[str]:
    """Names of the changing system calls of ``act``, in order."""
    names: list[str] = []
    with watched_calls(lambda _number, name, _args: names.append(name)):
        act()
    return names


def kill_at(number: int, torn: bool) -> Hook:
    """A hook that ends this process for good before call ``number``, or in the middle of it (half is written)."""
    write = os.write

    def hook(count: int, name: str, args: tuple[Any, ...]) -> None:
        if count != number:
            return
        if torn and name == "write":
            write(args[0], bytes(args[1])[: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    return hook


def in_child(act: Callable[[], object], hook: Hook | None = None) -> int:
    """Run ``act`` in a forked child; its exit status as `os.waitpid` gives it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        with watched_calls(hook or (lambda *_: None)):
            act()
        status = 0
    finally:
        os._exit(status)


def was_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def fresh(root: Path) -> Snapshot:
    shutil.rmtree(root, ignore_errors=True)
    lay_scene(root)
    return snapshot(root)


def apply_scene(root: Path) -> object:
    return apply_writes(scene_writes(root), scene_journal(root), META)


def undo_scene(root: Path) -> object:
    return undo_flight(scene_journal(root))


def each_kill(names: list[str]) -> Iterator[tuple[int, bool]]:
    """(number, torn) of every way to be killed among these calls."""
    for number, name in enumerate(names, 1):
        yield number, False
        if name == "write":
            yield number, True


def run_apply(root: Path) -> Iterator[dict[str, object]]:
    """Killed in apply; undone by another process."""
    fresh(root)
    for number, torn in each_kill(count_calls(lambda: apply_scene(root))):
        before = fresh(root)
        status = in_child(lambda: apply_scene(root), kill_at(number, torn))
        undone = in_child(lambda: undo_scene(root))
        left = differing(before, snapshot(root))
        yield {"kill": [number, torn], "killed": was_killed(status), "undo": undone, "differs": left}


def run_undo(root: Path) -> Iterator[dict[str, object]]:
    """Applied whole or killed in apply, then killed in undo; undone by a third process."""
    fresh(root)
    apply_kills = [None, *list(each_kill(count_calls(lambda: apply_scene(root))))[5::9]]
    for kill in apply_kills:
        for number, torn in _undo_kills(root, kill):
            before = fresh(root)
            in_child(lambda: apply_scene(root), kill_at(*kill) if kill else None)
            status = in_child(lambda: undo_scene(root), kill_at(number, torn))
            undone = in_child(lambda: undo_scene(root))
            left = differing(before, snapshot(root))
            yield {"kill": [kill, number, torn], "killed": was_killed(status), "undo": undone, "differs": left}


def _undo_kills(root: Path, kill: tuple[int, bool] | None) -> list[tuple[int, bool]]:
    fresh(root)
    in_child(lambda: apply_scene(root), kill_at(*kill) if kill else None)
    every = list(each_kill(count_calls(lambda: undo_scene(root))))
    return every if kill is None else every[kill[0] % 4 :: 4]


def main() -> None:
    root = Path(sys.argv[1]) / "scene"
    target_from_address(FileTarget(root).address())  # loads the modules once, not in every child
    for result in {"apply": run_apply, "undo": run_undo}[sys.argv[2]](root):
        print(json.dumps(result))


if __name__ == "__main__":
    main()
