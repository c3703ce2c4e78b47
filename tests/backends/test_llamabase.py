from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from velollm.backends import llamabase
from velollm.backends.base import ModelRef
from velollm.backends.child import Child
from velollm.backends.llamabase import serving
from velollm.errors import VeloError

MODEL = ModelRef("a-model", None)


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], Child]:
    def starter(code: str) -> Child:
        found = lambda line: line.removeprefix("at ") if line.startswith("at ") else None  # noqa: E731
        return Child([sys.executable, "-c", code], log=tmp_path / "engine.log", ready=found)

    return starter


def test_a_server_is_handed_out_and_reaped(start: Callable[[str], Child]) -> None:
    child = start("print('at http://127.0.0.1:9', flush=True); input()")
    told: list[str] = []
    with serving(child, MODEL, told.append) as server:
        assert server.url == "http://127.0.0.1:9"
        assert server.pids() == (child.pid,)
        assert told == ["loading a-model"]
    assert not psutil.pid_exists(child.pid)


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("print('E srv start: couldn\\'t bind HTTP server socket, port: 1')", "the port is taken: .*port: 1", "--port"),
        ("print('bind: address already in use'); print('error: exiting')", "could not load", "log is"),
        ("print('error: address already in use')", "the port is taken", "--port"),
        ("print('error loading model: no such tensor')", "could not load a-model: error loading model", "engine.log"),
        ("import sys; print('hello'); sys.exit(3)", "could not load a-model: exit status 3", "engine.log"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed, most likely for want of memory", "fits in memory"),
    ],
)
def test_why_a_server_did_not_start(start: Callable[[str], Child], code: str, message: str, hint: str) -> None:
    with pytest.raises(VeloError, match=message) as caught, serving(start(code), MODEL):
        pass
    assert hint in caught.value.hint


def test_a_server_that_is_never_ready(start: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamabase, "LOAD_TIMEOUT_S", 0.01)
    child = start("input()")
    with pytest.raises(VeloError, match="did not load a-model within 0 s"), serving(child, MODEL):
        pass
    assert not psutil.pid_exists(child.pid)
