"""The command line as a program of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

SRC = Path(__file__).resolve().parents[1] / "src"
PATIENCE_S = 90.0
"""No command of a test takes so long, unless it hangs."""


def program_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment, with the source tree to import from and a terminal of 80 columns."""
    return {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "80", **(extra or {})}


def run_cli(
    *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, with pipes instead of a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "velollm", *map(str, arguments)],
        env=program_environ(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class RunningCli:
    """A command that runs: its output so far can be awaited, and its engines can be found."""

    def __init__(self, *arguments: str | Path, own_group: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "velollm", *map(str, arguments)],
            env=program_environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if own_group else None,
        )
        self.stderr_lines: list[str] = []

    def wait_for(self, text: str, *, stdout: bool = False) -> str:
        """The next line that holds ``text``; fails where the output ends before it."""
        pipe = self.process.stdout if stdout else self.process.stderr
        assert pipe is not None
        for line in pipe:
            if not stdout:
                self.stderr_lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"the output ended without {text!r}: {self.stderr_lines}")

    def engines(self) -> list[psutil.Process]:
        """The engine processes below the command."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if any("embedded_child" in word for word in child.cmdline())]

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end; all of stderr, and what of stdout was not read before."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        stderr = "".join(self.stderr_lines) + err
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, stderr)


@contextmanager
def running_cli(*arguments: str | Path, own_group: bool = False) -> Iterator[RunningCli]:
    """A running command; whatever is left of it and of its children is killed in the end, or when it hangs.

    ``own_group``: in a process group of its own, as a shell starts it at a terminal.
    """
    cli = RunningCli(*arguments, own_group=own_group)
    watchdog = threading.Timer(PATIENCE_S, cli.process.kill)
    watchdog.start()
    try:
        yield cli
    finally:
        watchdog.cancel()
        left = psutil.Process(cli.process.pid).children(recursive=True) if cli.process.poll() is None else []
        cli.process.kill()
        for child in left:
            child.kill()
        cli.process.wait()
        for pipe in (cli.process.stdout, cli.process.stderr):
            assert pipe is not None
            pipe.close()


def left_alive(processes: list[psutil.Process], timeout_s: float = 10.0) -> list[psutil.Process]:
    """Those that still live after waiting; one that only waits to be reaped is dead."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def one_error(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The error and the hint of a failed command: one line of each, no traceback, nothing on stdout."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("Error:")]
    hints = [line for line in lines if line.startswith("Hint:")]
    assert (len(errors), len(hints)) == (1, 1), done.stderr
    assert lines[-2:] == [*errors, *hints], done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert errors[0].strip() != "Error:"
    assert hints[0].strip() != "Hint:"
    return errors[0], hints[0]


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["schema_version"] == 1
    return found
