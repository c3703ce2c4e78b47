"""A child process of our own: its own process group, its output read as it comes, always reaped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from velollm.errors import VeloError

WRAPPER_ERROR = "velollm-error "
"""Begins the line with which our own process around an engine reports an exception."""
_T = TypeVar("_T")
_STOP_S = 5.0
_LAST_WORDS_S = 1.0
_TAIL_LINES = 40


class Child:
    """A running child process whose output goes to ``log``.

    ``ready`` looks at each line of output and returns a value (an address) at the line that says the
    child can work; `wait_ready` returns it. The child's standard input is a pipe that we hold, so that a
    child of ours notices when this process dies, however it dies; ``first_line`` is written to it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
        ready: Callable[[str], str | None] = lambda _: None,
        cwd: Path | None = None,
        first_line: str | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.log = log
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ready = ready
        self._value: str | None = None
        self._event = threading.Event()
        try:
            self._log_file = log.open("ab")
            self._log_start = self._log_file.tell()
        except OSError as error:
            raise VeloError(f"cannot write the engine's log {log}: {error.strerror}", "free some disk space") from error
        try:
            self.process = self._spawn(environ, cwd)
        except OSError as error:
            self._log_file.close()
            raise VeloError(
                f"cannot start {argv[0]}: {error.strerror}", "check that the engine is installed and executable"
            ) from error
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # Two pipes: what a child says in one must not be cut by what it says in the other.
        self._pipes = (self.process.stdout, self.process.stderr)
        self._open_pipes = len(self._pipes)
        self._lock = threading.Lock()
        self._said = threading.Condition(self._lock)
        self._readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True) for pipe in self._pipes]
        for reader in self._readers:
            reader.start()
        if first_line is not None:
            self._say(first_line)

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        # A child that is already dead is reported by `wait_ready`.
        with contextlib.suppress(OSError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def _spawn(self, environ: Mapping[str, str] | None, cwd: Path | None) -> subprocess.Popen[bytes]:
        new_group: dict[str, object] = {"start_new_session": True}
        if sys.platform == "win32":
            new_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            list(self.argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environ is None else dict(environ),
            cwd=cwd,
            **new_group,
        )

    def _read(self, pipe: IO[bytes]) -> None:
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip()
            with self._lock:
                self._keep(raw, line)
                if not self._event.is_set() and (value := self._ready(line)) is not None:
                    self._value = value
                    self._event.set()
                self._said.notify_all()
        with self._lock:
            self._open_pipes -= 1
            self._said.notify_all()
            if not self._open_pipes:
                self._event.set()

    def _keep(self, raw: bytes, line: str) -> None:
        self.tail.append(line)
        with contextlib.suppress(OSError, ValueError):
            self._log_file.write(raw)
            self._log_file.flush()

    def read_log(self) -> str:
        """What this child has said so far; a log may hold what others said before."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def wait_for(self, find: Callable[[str], _T | None], timeout_s: float) -> _T | None:
        """What ``find`` finds in all that the child has said, as soon as it is there; None after ``timeout_s``.

        An answer that came another way may be here before the lines that were said before it.
        """
        with self._said:
            self._said.wait_for(lambda: find(self.read_log()) is not None or not self._open_pipes, timeout_s)
            return find(self.read_log())

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, timeout_s: float) -> str | None:
        """What ``ready`` returned; None when the child ended first or the time is up."""
        self._event.wait(timeout_s)
        return self._value

    def wait_end(self, timeout_s: float | None = None) -> int | None:
        """Exit status, or None when the child still runs after ``timeout_s``."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> None:
        """Send a signal to the child's whole process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self.process.send_signal(number)
            else:
                os.killpg(self.pid, number)

    def stop(self, *, gently: bool = False) -> None:
        """End the whole process group and wait for it; ``gently`` asks with SIGTERM first."""
        if gently and self.alive:
            self.signal(signal.SIGTERM)
            self.wait_end(_STOP_S)
        self.signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.wait_end(_STOP_S)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        for reader, pipe in zip(self._readers, self._pipes, strict=True):
            reader.join(_STOP_S)
            pipe.close()
        self._log_file.close()

    def why_it_failed(self) -> str:
        """Why the child has ended, in one line, from its last words and its exit status.

        Empty where it still runs and has said nothing of a cause.
        """
        status = self.wait_end(_LAST_WORDS_S)
        with self._said:
            self._said.wait_for(lambda: not self._open_pipes, _LAST_WORDS_S)
            lines = list(self.tail)
        return explain_end(status, lines)


def explain_end(status: int | None, lines: Sequence[str]) -> str:
    """Why a process has ended, from its exit status (None: it runs) and what it said last.

    One that was killed cannot say so: whatever it said before was about something else.
    """
    number = _signal_of(status)
    if number == _SIGKILL:
        return "it was killed, most likely for want of memory"
    if reason := pick_reason(lines):
        return name_shortage(reason)
    if number is not None:
        return f"it was ended by signal {number} ({signal.strsignal(number)})"
    return "" if status is None else f"exit status {status}"


def name_shortage(reason: str) -> str:
    """An engine's own words, without a time stamp, and in front of them that memory is short, where they mean that."""
    plain = _STAMP.sub("", reason)
    return f"memory is short: {plain}" if _NO_MEMORY.search(plain) else plain


def _signal_of(status: int | None) -> int | None:
    """The signal that ended a process: subprocess has its negative, a shell and our guard 128 more than it."""
    if status is None or 0 <= status <= 128:
        return None
    number = -status if status < 0 else status - 128
    return number if number < signal.NSIG else None


_SIGKILL = 9
_TELLING = ("error", "failed", "fatal", "abort", "unable", "cannot", "couldn't", "invalid", "out of memory", "no such")
# llama.cpp begins a line with minutes, seconds, milliseconds and microseconds, and a letter for the level.
_STAMP = re.compile(r"^\d+(?:\.\d+){3} [A-Z] ")
_BETWEEN_ERRORS = 5
# What ends the engine for certain, or says more than the errors behind it (src/llama-context.cpp:3639).
_DECISIVE = ("GGML_ASSERT(", "context type MTP requested")
# The engine's own words beside a failure that is none (src/llama-context.cpp:154).
NO_FAILURE = "(this warning is normal"
_ERROR_STAMP = re.compile(r"^\d+(?:\.\d+){3} E ")
# Words of llama.cpp b10488 (ggml/src/ggml.c:377 and 1643, ggml-backend.cpp:2369, ggml-cuda.cu:891), C++ and C.
_NO_MEMORY = re.compile(
    r"insufficient memory|out of memory|failed to allocate|unable to allocate|cannot allocate memory|bad_alloc"
    r"|mem_buffer != NULL",
    re.I,
)
_THROWN = re.compile(r"terminate called after throwing an instance of '(.{1,80})'")


def pick_reason(lines: Sequence[str]) -> str:
    """The line that most likely names a cause, without time stamps; empty where none does.

    That is where the engine's last run of errors begins, as those after it tell what came of it, but an assertion
    before errors that are not about memory; without any that it marks as such, the first line with a telling word.
    What our own process around an engine says counts only where the engine itself says nothing: the two come through
    different pipes, so their order tells nothing.
    """
    texts = [line.strip() for line in lines if NO_FAILURE not in line]
    marked = _last_errors(texts)
    short = any(_NO_MEMORY.search(text) for text in marked)
    decisive = [] if short else [text for text in texts if any(words in text for words in _DECISIVE)]
    telling = [text for text in texts if any(word in text.lower() for word in _TELLING)]
    own = [text for text in telling if not text.startswith(WRAPPER_ERROR)]
    found = _STAMP.sub("", next(iter(decisive or marked or own or telling), ""))
    return _with_what(found, texts)[-300:]


def _last_errors(texts: Sequence[str]) -> list[str]:
    """The last run of lines that the engine marks as errors, with few others between them.

    One that it could go on after is followed by much else: an attempt to fit the model into memory, say.
    """
    places = [place for place, text in enumerate(texts) if _ERROR_STAMP.match(text)]
    first = len(places) - 1
    while first > 0 and places[first] - places[first - 1] <= _BETWEEN_ERRORS:
        first -= 1
    return [texts[place] for place in places[max(first, 0) :]]


def _with_what(reason: str, texts: Sequence[str]) -> str:
    """An exception that nobody caught, with the message that the C++ run-time prints on a line of its own."""
    thrown = _THROWN.search(reason)
    if thrown is None:
        return reason
    what = next((text.removeprefix("what():").strip() for text in texts if text.startswith("what():")), "")
    return f"{thrown.group(1)}: {what}" if what else thrown.group(1)
