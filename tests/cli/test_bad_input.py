"""What a user can do wrong, or suffer: one error, one hint, nothing left running, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.crash import Snapshot, count_calls, snapshot, watched_calls
from tests.ordinary import ordinary_user, public_dir
from tests.program import left_alive, one_error, run_cli, running_cli
from velollm.autopilot import Order, chart, flights, undo
from velollm.autopilot.landing import land
from velollm.autopilot.order import Course
from velollm.cli import run_app
from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Knobs

FLAGS = ("--backend", "embedded", "--set", "context_tokens=2048", "--set", "threads=1")


def stray_engines() -> list[psutil.Process]:
    """Engines on this machine that were started in this test's home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("embedded_child" in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                found += [process] if process.environ().get("VELOLLM_HOME") == os.environ["VELOLLM_HOME"] else []
    return found


def fails(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    error, hint = one_error(done)
    assert done.returncode == code
    for word in words:
        assert word in f"{error}\n{hint}"


def nothing_written(home: Path) -> None:
    assert not (home / "velollm" / "config").exists()
    assert flights() == []
    assert left_alive(stray_engines()) == []


def test_no_such_model(own_home: Path, tmp_path: Path) -> None:
    fails(run_cli("optimize", "no-such-model", *FLAGS, "--yes"), "no model 'no-such-model'", "ollama list")
    fails(run_cli("bench", tmp_path / "none.gguf", "--backend", "embedded", "--json"), "none.gguf")
    fails(run_cli("run", tmp_path, "--backend", "embedded"), "is a directory")
    nothing_written(own_home)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("optimize", "--backend", "engine9"), ("no backend 'engine9'", "embedded")),
        (("optimize", "--profile", "fast"), ("no profile 'fast'", "low-memory")),
        (("bench", "--set", "speed=9"), ("no knob 'speed'", "context_tokens")),
        (("optimize", "--set", "threads=many"), ("threads", "'many'")),
        (("optimize", "--set", "threads"), ("KNOB=VALUE", "threads=4")),
        (("optimize", "--backend", "embedded", "--set", "keep_alive_s=60", "--dry-run"), ("no knob 'keep_alive_s'",)),
        (("optimize", "--budget", "1s"), ("--budget", "3m")),
        (("explain", "speed"), ("no knob 'speed'", "threads")),
        (("run", "--port", "99999"), ("--port", "65535")),
        (("fly",), ("fly", "--help")),
        (("undo", "--now"), ("--now", "undo --help")),
        (("optimize", "one", "two"), ("two", "--help")),
    ],
    ids=lambda value: " ".join(value),
)
def test_typed_wrongly(arguments: tuple[str, ...], words: tuple[str, ...], own_home: Path) -> None:
    fails(run_cli(*arguments), *words, code=2)
    nothing_written(own_home)


def test_no_such_flight() -> None:
    fails(run_cli("undo", "20200101-000000-abcd"), "20200101-000000-abcd", "velollm history")


@pytest.mark.parametrize(
    ("size", "words"),
    [(1_200_000, "cut off"), (5_000, "more than the file holds"), (10, "ends within its header"), (0, "empty")],
)
def test_a_truncated_gguf(size: int, words: str, tiny: Path, own_home: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:size])
    fails(run_cli("optimize", cut, *FLAGS, "--yes"), str(cut), words)
    nothing_written(own_home)


def test_not_a_gguf(own_home: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("This is no model.\n")
    fails(run_cli("optimize", text, *FLAGS, "--yes"), str(text), "GGUF")
    nothing_written(own_home)


def test_a_model_that_the_engine_refuses(tiny: Path, own_home: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tiny.read_bytes().replace(b"llama", b"llamq"))
    done = run_cli("optimize", odd, *FLAGS, "--yes")
    fails(done, "unknown model architecture: 'llamq'")
    # The log that the hint names is there to be read.
    assert "llamq" in named_log(done).read_text(encoding="utf-8")
    nothing_written(own_home)


def test_an_unreadable_directory(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with public_dir() as public:
        locked = public / "locked"
        locked.mkdir()
        shutil.copy(tiny, locked / "model.gguf")
        locked.chmod(0)
        argv = ["optimize", str(locked / "model.gguf"), *FLAGS, "--dry-run"]
        run_app(argv)  # loads the modules, which an ordinary user need not be able to read
        capsys.readouterr()
        with ordinary_user():
            code = run_app(argv)
        fails(subprocess.CompletedProcess(argv, code, *capsys.readouterr()), str(locked))


def test_an_unreadable_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with public_dir() as public:
        locked = public / "locked"
        locked.mkdir()
        (locked / "proc_meminfo.txt").write_text("MemTotal: 1024 kB\n")
        locked.chmod(0)
        argv = ["doctor", "--capture", str(locked), "--json"]
        run_app(argv)
        capsys.readouterr()
        with ordinary_user():
            code = run_app(argv)
        fails(subprocess.CompletedProcess(argv, code, *capsys.readouterr()), str(locked))


@pytest.mark.parametrize("arguments", [("history",), ("undo",), ("optimize", *FLAGS, "--yes"), ("bench", "--quick")])
def test_a_home_that_is_a_file(arguments: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    if arguments[0] in ("optimize", "bench"):
        arguments = (arguments[0], str(tiny), "--backend", "embedded", *arguments[1:])
        arguments = tuple(dict.fromkeys(arguments)) if arguments[0] == "bench" else arguments
    done = run_cli(*arguments, environ={"VELOLLM_HOME": str(tmp_path / "file" / "home")})
    fails(done, str(tmp_path / "file"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def test_a_port_that_is_taken(tiny: Path, taken_port: int) -> None:
    done = run_cli("run", tiny, "--backend", "embedded", "--port", str(taken_port))
    fails(done, "the port is taken", str(taken_port), "--port")
    assert left_alive(stray_engines()) == []


def test_an_engine_killed_in_a_trial(tiny: Path, own_home: Path) -> None:
    with running_cli("optimize", tiny, *FLAGS, "--budget", "60s", "--yes", "--json") as cli:
        cli.wait_for("round 1 of")
        engines = cli.engines()
        assert len(engines) == 2
        engines[0].kill()
        done = cli.finish()
    fails(done, "the engine ended in the middle of its work")
    assert left_alive(engines) == []
    nothing_written(own_home)


def test_an_engine_killed_while_it_serves(tiny: Path) -> None:
    with running_cli("run", tiny, "--backend", "embedded", "--json") as cli:
        while cli.wait_for("}", stdout=True) != "}\n":
            pass
        (engine,) = cli.engines()
        engine.kill()
        done = cli.finish()
    fails(done, "the engine ended by itself", "-9")
    assert named_log(done).is_file()


def named_log(done: subprocess.CompletedProcess[str]) -> Path:
    """The path that ends the hint."""
    return Path(one_error(done)[1].rpartition(" ")[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_a_trial(number: signal.Signals, tiny: Path, own_home: Path) -> None:
    with running_cli("optimize", tiny, *FLAGS, "--budget", "60s", "--yes", "--json") as cli:
        cli.wait_for("round 1 of")
        engines = cli.engines()
        cli.process.send_signal(number)
        done = cli.finish()
    fails(done, "Error: interrupted")
    assert len(engines) == 2
    assert left_alive(engines) == []
    nothing_written(own_home)


def test_interrupted_while_it_serves(tiny: Path) -> None:
    with running_cli("run", tiny, "--backend", "embedded") as cli:
        cli.wait_for("until Ctrl-C", stdout=True)
        engines = cli.engines()
        cli.process.send_signal(signal.SIGINT)
        done = cli.finish()
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert len(engines) == 1
    assert left_alive(engines) == []


def test_killed_in_a_trial(tiny: Path, own_home: Path) -> None:
    """Nobody is left to end the engines, so they end by themselves."""
    with running_cli("optimize", tiny, *FLAGS, "--budget", "60s", "--yes") as cli:
        cli.wait_for("round 1 of")
        engines = cli.engines()
        cli.process.kill()
        assert cli.finish().returncode == -signal.SIGKILL
    assert len(engines) == 2
    assert left_alive(engines) == []
    nothing_written(own_home)


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """`velollm history | head -0` ends without a word."""
    with running_cli("explain", "threads") as cli:
        assert cli.process.stdout is not None
        cli.process.stdout.close()
        assert cli.process.stderr is not None
        assert "Traceback" not in cli.process.stderr.read()


# The disk is full while a plan is applied


class Nobody:
    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None: ...

    def note(self, text: str) -> None: ...

    def ask(self, question: str) -> bool:
        return False


@pytest.fixture
def course(tiny: Path) -> Course:
    """A plan with changes for both files, over files of the user's."""
    paths = user_paths()
    paths.config.mkdir(parents=True)
    paths.engine_env.write_bytes(b"# mine\nexport LAST='1'")
    paths.engine_settings.write_bytes(b"models: {}\n")
    pins: Knobs = {"context_tokens": 2048, "threads": 7, "flash_attention": "on"}
    found = chart(Order(str(tiny), "embedded", pins=pins, paths=paths, probe=Facts), Nobody())
    assert {change.target for change in found.plan.changes} == {"environment", "engine"}
    return found


def fill_disk(first: int, *, for_good: bool) -> Any:
    """A hook that refuses the ``first`` call that needs space, and with ``for_good`` all later ones."""

    def hook(number: int, name: str, args: tuple[Any, ...]) -> None:
        needs_space = name in ("write", "mkdir", "open", "fsync", "ftruncate")
        if needs_space and (number == first or (for_good and number > first)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return hook


@pytest.mark.parametrize("for_good", [False, True], ids=["for a moment", "for good"])
def test_a_full_disk_while_applying(for_good: bool, course: Course) -> None:
    config = course.order.paths.config
    before = snapshot(config)
    land(course, course.plan, "a first one makes the journal's directory")
    undo(None)
    calls = count_calls(lambda: land(course, course.plan, "a test"))
    assert snapshot(config) != before
    undo(None)
    assert snapshot(config) == before
    assert calls.count("write") >= 5

    refused = 0
    for number, name in enumerate(calls, 1):
        if name in ("write", "mkdir", "open", "fsync", "ftruncate"):
            # Once a first file is in its place, a disk that refuses everything may refuse the way back as well.
            may_stick = for_good and number > calls.index("replace")
            refused += check_full_disk(course, before, number, for_good=for_good, may_stick=may_stick)
    assert refused > 5


def check_full_disk(course: Course, before: Snapshot, number: int, *, for_good: bool, may_stick: bool) -> bool:
    """Land on a disk that is full from this call on: all or nothing, and the rest can be undone."""
    config = course.order.paths.config
    error: VeloError | None = None
    with watched_calls(fill_disk(number, for_good=for_good)):
        try:
            land(course, course.plan, "a test")
        except VeloError as found:
            error = found
    if error is not None:
        assert error.hint
        assert os.strerror(errno.ENOSPC) in error.message
        told = "could not be put back" in error.message and "velollm undo" in error.hint
        assert (may_stick and told) or snapshot(config) == before, (number, error)
    undo(None)
    assert snapshot(config) == before, number
    return error is not None
