from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from velollm.backends.child import Child
from velollm.backends.ollama_home import private_home, sweep_homes

_HOLD = """
import sys
from pathlib import Path
from velollm.backends.ollama_home import private_home
with private_home() as home:
    (home / "written").write_text("by the server")
    print("ready", home, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_home_goes_with_its_server(temporary: Path) -> None:
    with private_home() as home:
        assert home.parent == temporary
        assert home.stat().st_mode & 0o077 == 0
        with private_home() as other:
            assert other != home
        assert home.is_dir()
        assert not other.exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="nobody sweeps there")
def test_the_home_of_one_that_was_killed_goes_with_the_next(
    temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    child = Child([sys.executable, "-c", _HOLD], log=log, ready=lambda line: line.partition("ready ")[2] or None)
    try:
        home = Path(child.wait_ready(30) or "")
        sweep_homes(temporary)
        assert (home / "written").is_file()  # it is held
        os.kill(child.pid, signal.SIGKILL)
        child.wait_end(10)
        assert home.is_dir()
        with private_home():
            assert not home.exists()
    finally:
        child.stop()


def test_what_is_not_ours_is_left(temporary: Path) -> None:
    (temporary / "velollm-ollama-mine").mkdir()
    (temporary / "other").mkdir()
    (temporary / "other" / ".velollm-lock").touch()
    sweep_homes(temporary)
    assert len(list(temporary.iterdir())) == 2
