"""`velollm run -- ollama serve`: the parent that starts a server with the
applied environment, and restarts it on request.

Requests come over a local connection (a Unix socket or a named pipe, with a key that only the user can read), so that
a flight can activate a change, wait for the server to be up again, and take the change back.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TextIO

from velollm.backends.ollama_log import parse_listening
from velollm.config import ensure_dir
from velollm.errors import VeloError

_START_S = 120.0
_STOP_S = 15.0
_LOG_LINES = 20_000
RELAY = "relay of a server's output"
"""Name of the threads that pass on what a server says, one for each start."""


class Runner:
    """Runs one program until it ends; each start reads its environment anew through ``environ``."""

    def __init__(
        self, argv: Sequence[str], environ: Callable[[], Mapping[str, str]], state_file: Path, err: TextIO | None = None
    ) -> None:
        self._argv, self._environ, self._state_file = list(argv), environ, state_file
        self._err = err or sys.stderr
        self._lock = threading.Lock()
        self._listening = threading.Event()
        self._up = False
        self._restarting = self._ending = False
        self._process: subprocess.Popen[str] | None = None
        self._tail: deque[str] = deque(maxlen=_LOG_LINES)

    def run(self) -> int:
        """Start the program, serve requests, and return its exit status once it ends by itself or by a signal."""
        key = secrets.token_bytes(32)
        with Listener(authkey=key) as listener:
            self._start()
            self._publish(listener, key)
            service = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            service.start()
            try:
                return self._wait()
            finally:
                with contextlib.suppress(OSError):
                    self._state_file.unlink()
                with self._lock:
                    self._ending = True
                    self._stop()
                # Closing a listener does not wake the thread that waits at it; a knock does.
                with contextlib.suppress(OSError, EOFError), Client(listener.address, authkey=key) as knock:
                    knock.send_bytes(b"end")
                service.join(_STOP_S)

    def _wait(self) -> int:
        while True:
            process = self._process
            assert process is not None
            status = process.wait()
            with self._lock:
                if process is self._process and not self._restarting:
                    return status

    def _start(self) -> None:
        listening = threading.Event()
        try:
            process = subprocess.Popen(
                self._argv,
                env=dict(self._environ()),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise VeloError(
                f"cannot start {self._argv[0]}: {error.strerror}", "give the program that you start your server with"
            ) from error
        # The relay of an earlier start may still be at work: it has an event of its own.
        self._process, self._listening, self._up = process, listening, False
        threading.Thread(target=self._relay, args=(process, listening), name=RELAY, daemon=True).start()

    def _relay(self, process: subprocess.Popen[str], listening: threading.Event) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._tail.append(line)
            with contextlib.suppress(OSError, ValueError):
                self._err.write(line)
                self._err.flush()
            if process is self._process and parse_listening(line):
                self._up = True
                listening.set()
        process.stderr.close()
        # Whoever waits for the server to listen must not wait for a dead one.
        listening.set()

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        self._signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        self._signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()

    def _signal(self, process: subprocess.Popen[str], number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)

    def _restart(self) -> str:
        """Restart the program and wait until it listens; an empty text, or why it does not."""
        with self._lock:
            if self._ending:
                return "`velollm run` is ending"
            self._restarting = True
            try:
                self._stop()
                self._start()
            except VeloError as error:
                return error.message
            finally:
                self._restarting = False
        if not self._listening.wait(_START_S):
            return f"the server did not listen again within {_START_S:.0f} s"
        if self._up:
            return ""
        assert self._process is not None
        return f"the server ended at once (exit status {self._process.wait()})"

    def _publish(self, listener: Listener, key: bytes) -> None:
        ensure_dir(self._state_file.parent)
        state = {"address": listener.address, "key": key.hex(), "pid": os.getpid(), "argv": self._argv}
        fd = os.open(self._state_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(state, file)

    def _serve(self, listener: Listener) -> None:
        while True:
            try:
                with listener.accept() as connection:
                    request = connection.recv_bytes()
                    if request == b"end" and self._ending:
                        return
                    self._answer(connection, request)
            except AuthenticationError:
                continue
            except (OSError, EOFError):
                # A client that leaves at once is no reason to stop.
                if self._ending:
                    return

    def _answer(self, connection: Connection, request: bytes) -> None:
        if request == b"restart":
            connection.send_bytes(self._restart().encode())
        elif request == b"log":
            connection.send_bytes("".join(list(self._tail)).encode("utf-8", "replace"))
        else:
            process = self._process
            connection.send_bytes(str(process.pid if process else 0).encode())


class RunClient:
    """A connection to the `velollm run` that is the parent of a server."""

    def __init__(self, address: str, key: bytes) -> None:
        self._address, self._key = address, key

    def server_pid(self) -> int:
        """Process id of the server that it runs."""
        return int(self._ask(b"pid") or b"0")

    def restart(self) -> None:
        """Restart the server, and return when it listens again. Raises `VeloError` when it does not."""
        if problem := self._ask(b"restart").decode("utf-8", "replace"):
            raise VeloError(problem, "look at the output of `velollm run`")

    def log(self) -> str:
        """The newest output of the server and of those before it. Raises `VeloError` where nobody answers."""
        return self._ask(b"log").decode("utf-8", "replace")

    def _ask(self, request: bytes) -> bytes:
        try:
            with Client(self._address, authkey=self._key) as connection:
                connection.send_bytes(request)
                return connection.recv_bytes()
        except (OSError, EOFError, AuthenticationError) as error:
            raise VeloError("`velollm run` does not answer any more", "start it again") from error


def reach_runner(state_file: Path) -> RunClient | None:
    """The `velollm run` that is at work with this state file; None where there is none."""
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        client = RunClient(str(state["address"]), bytes.fromhex(state["key"]))
        client.server_pid()
    except (OSError, ValueError, KeyError, TypeError, VeloError):
        return None
    return client


def read_runner_environ(state_file: Path) -> dict[str, str] | None:
    """The environment that `velollm run` was started with, which its server inherits; None where it is unknown."""
    import psutil

    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        return dict(psutil.Process(int(state["pid"])).environ())
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def find_runner(state_file: Path, server_pid: int | None) -> RunClient | None:
    """The `velollm run` that is the parent of the server with this process id; None where there is none."""
    client = reach_runner(state_file)
    return client if client is not None and server_pid is not None and client.server_pid() == server_pid else None
