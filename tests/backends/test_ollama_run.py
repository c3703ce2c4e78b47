from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from velollm.backends.ollama_run import RELAY, RunClient, Runner, find_runner
from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.probe.ollama_log_place import read_server_log
from velollm.probe.source import TextSource

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="process ids are watched as Linux does it")

# A server that says where it listens and what it was given, with a child of its own, until SIGTERM.
SERVER = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("setting", os.environ.get("SETTING"), os.getpid(), child.pid, file=sys.stderr)
print('time=x level=INFO msg="Listening on 127.0.0.1:1234 (version 0.0.0)"', file=sys.stderr, flush=True)
signal.pause()
"""


class Output(io.StringIO):
    """Collects what the server says; ``listening`` counts its starts."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = threading.Semaphore(0)

    def write(self, text: str) -> int:
        count = super().write(text)
        if "Listening" in text:
            self.listening.release()
        return count

    def settings(self) -> list[tuple[str, int, int]]:
        """(setting, process id, its child's id) of each start."""
        lines = [line.split() for line in self.getvalue().splitlines() if line.startswith("setting ")]
        return [(words[1], int(words[2]), int(words[3])) for words in lines]


class Running:
    """A runner in a thread, and what it returned."""

    def __init__(self, state: Path, argv: list[str]) -> None:
        self.environ = {**os.environ, "SETTING": "first"}
        self.out = Output()
        self.state = state
        self.status: int | None = None
        self.runner = Runner(argv, lambda: self.environ, state, self.out)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.status = self.runner.run()

    def __enter__(self) -> Running:
        self.thread.start()
        assert self.out.listening.acquire(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        for _setting, pid, _child in self.out.settings():
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def client(self) -> RunClient:
        found = find_runner(self.state, self.out.settings()[-1][1])
        assert found is not None
        return found


@contextmanager
def running(tmp_path: Path, code: str = SERVER) -> Iterator[Running]:
    with Running(tmp_path / "run.json", [sys.executable, "-c", code]) as found:
        yield found


def gone(*pids: int) -> bool:
    """Ended, though perhaps not yet reaped by whoever adopted it."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], 10)
        os.close(handle)
        if not ended:
            return False
    return True


def test_a_restart_does_not_take_the_end_of_the_old_server_for_that_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_late(*args: Any, **options: Any) -> subprocess.Popen[str]:
        # The old server's output ends while the new one is being started.
        (relay,) = [thread for thread in threading.enumerate() if thread.name == RELAY]
        os.kill(found.out.settings()[0][2], signal.SIGKILL)
        relay.join(20)
        return start(*args, **options)

    with running(tmp_path, SERVER.replace('signal.pause()"])', 'signal.pause()"], start_new_session=True)')) as found:
        client = found.client()
        monkeypatch.setattr("velollm.backends.ollama_run.subprocess.Popen", start_late)
        client.restart()
        (_, _, old), (_, pid, new) = found.out.settings()
        assert client.server_pid() == pid
        os.kill(new, signal.SIGKILL)
    assert gone(old, new)


def test_a_restart_reads_the_environment_anew(tmp_path: Path) -> None:
    with running(tmp_path) as found:
        client = found.client()
        (_, pid, child) = found.out.settings()[0]
        assert client.server_pid() == pid
        found.environ["SETTING"] = "second"
        client.restart()
        second = found.out.settings()[1]
        assert second[0] == "second"
        assert client.server_pid() == second[1]
        assert gone(pid, child)
    assert gone(second[1], second[2])


def test_a_restart_that_fails_says_so(tmp_path: Path) -> None:
    code = f"import os, sys\nif os.environ['SETTING'] == 'bad': sys.exit(7)\n{SERVER}"
    with running(tmp_path, code) as found:
        client = found.client()
        found.environ["SETTING"] = "bad"
        with pytest.raises(VeloError, match=r"ended at once \(exit status 7\)"):
            client.restart()
        found.thread.join(20)
        assert found.status == 7


def test_a_program_that_is_gone_at_a_restart(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o755)
    with Running(tmp_path / "run.json", [str(program)]) as found:
        client = found.client()
        program.unlink()
        with pytest.raises(VeloError, match="cannot start"):
            client.restart()
        found.thread.join(20)
        assert not found.thread.is_alive()


def test_what_the_server_says_can_be_asked_for(tmp_path: Path) -> None:
    with running(tmp_path) as found:
        client = found.client()
        first = client.log()
        assert first == found.out.getvalue()
        found.environ["SETTING"] = "second"
        client.restart()
        assert client.log().startswith(first)
        assert "setting second" in client.log()
        place = read_server_log(TextSource(), "http://127.0.0.1:1", found.out.settings()[-1][1], None, {}, tmp_path)
        assert place.text is None  # it is the run of another home


def test_the_probe_reads_what_the_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELOLLM_HOME", str(tmp_path))
    state = user_paths().runner_state
    state.parent.mkdir(parents=True)
    with Running(state, [sys.executable, "-c", SERVER]) as found:
        pid = found.out.settings()[-1][1]
        log = read_server_log(TextSource(), "http://127.0.0.1:1", pid, None, {}, tmp_path)
        assert (log.place, log.unread) == ("output of `velollm run`", None)
        assert log.text == found.out.getvalue()


def test_a_server_that_ends_by_itself_ends_the_run(tmp_path: Path) -> None:
    with running(tmp_path) as found:
        _, pid, child = found.out.settings()[0]
        os.kill(pid, signal.SIGKILL)
        found.thread.join(20)
        assert found.status == -signal.SIGKILL
    assert gone(pid, child)
    assert not found.state.exists()


def test_only_the_key_opens(tmp_path: Path) -> None:
    with running(tmp_path) as found:
        state = json.loads(found.state.read_text())
        assert found.state.stat().st_mode & 0o077 == 0
        with pytest.raises(VeloError, match="does not answer"):
            RunClient(state["address"], b"wrong").restart()
        assert len(found.out.settings()) == 1
        assert found.client().server_pid() == found.out.settings()[0][1]


def test_a_client_that_only_knocks_does_no_harm(tmp_path: Path) -> None:
    import socket

    with running(tmp_path) as found:
        state = json.loads(found.state.read_text())
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(state["address"])
        assert found.client().server_pid() == found.out.settings()[0][1]


def test_no_runner_for_another_server_or_none(tmp_path: Path) -> None:
    assert find_runner(tmp_path / "absent.json", 1) is None
    (tmp_path / "damaged.json").write_text('{"address": "/nowhere"}')
    assert find_runner(tmp_path / "damaged.json", 1) is None
    (tmp_path / "stale.json").write_text(json.dumps({"address": str(tmp_path / "nowhere"), "key": "00"}))
    assert find_runner(tmp_path / "stale.json", 1) is None
    with running(tmp_path) as found:
        assert find_runner(found.state, os.getpid()) is None


def test_a_program_that_cannot_start(tmp_path: Path) -> None:
    runner = Runner([str(tmp_path / "absent")], lambda: os.environ, tmp_path / "run.json")
    with pytest.raises(VeloError, match="cannot start"):
        runner.run()
    assert not (tmp_path / "run.json").exists()


RUN = """
import os, signal, sys
from pathlib import Path
from velollm.backends.ollama_run import Runner
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
sys.exit(Runner([sys.executable, "-c", sys.argv[1]], lambda: os.environ, Path(sys.argv[2])).run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_ends_the_whole_group(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "run.json"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", RUN, SERVER, str(state)], env=environ, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stderr is not None
        words = parent.stderr.readline().split()
        assert "Listening" in parent.stderr.readline()
        parent.send_signal(number)
        parent.stderr.read()
        assert parent.wait(20) != 0
    assert gone(int(words[2]), int(words[3]))
    assert not state.exists()


@pytest.mark.parametrize("ignored", [False, True], ids=["closed terminal", "under nohup"])
def test_a_hangup_ends_the_command_and_its_server(tmp_path: Path, ignored: bool) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "VELOLLM_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "velollm", "run", "--", sys.executable, "-c", SERVER]
    if ignored:
        command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command]
    # Whoever started the tests may have had hangups ignored.
    with subprocess.Popen(
        command,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as parent:
        assert parent.stderr is not None
        words = parent.stderr.readline().split()
        assert "Listening" in parent.stderr.readline()
        parent.send_signal(signal.SIGHUP)
        if ignored:
            client = find_runner(tmp_path / "data" / "run.json", int(words[2]))
            assert client is not None
            assert client.server_pid() == int(words[2])
            parent.send_signal(signal.SIGTERM)
        parent.stderr.read()
        parent.wait(20)
    assert gone(int(words[2]), int(words[3]))
    assert not (tmp_path / "data" / "run.json").exists()
