"""A real Ollama under `velollm run`, with its log in a file, for tests of the doctor."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real_ollama import MODEL

_START_S = 60.0
_SOURCE = str(Path(__file__).resolve().parents[1] / "src")


@dataclass(frozen=True)
class Patient:
    """A server that a test makes ill. ``log`` is where `velollm run` writes what the server says."""

    url: str
    home: Path
    log: Path
    client: httpx.Client

    def environ(self, **more: str) -> dict[str, str]:
        """Environment of a user's command that finds this server, and nothing else of an engine's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "LLAMA_", "OMP_"))}
        own = {"HOME": str(self.home), "VELOLLM_HOME": str(self.home / "velollm"), "PYTHONPATH": _SOURCE}
        return {**kept, **own, "OLLAMA_HOST": self.url, **more}

    def ask(self, model: str = MODEL, *, tokens: int = 2, prompt: str = "import os\n", **options: object) -> int:
        """HTTP status of one answer."""
        asked = {"num_predict": tokens, **options}
        body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": asked}
        return self.client.post("/api/generate", json=body).status_code

    def create(self, model: str, **body: object) -> None:
        """Make a model out of `MODEL`."""
        made = {"model": model, "from": MODEL, "stream": False, **body}
        self.client.post("/api/create", json=made).raise_for_status()

    def delete(self, model: str) -> None:
        self.client.request("DELETE", "/api/delete", json={"model": model}).raise_for_status()

    def doctor(self, *options: str, affinity: Sequence[int] = (), **environ: str) -> dict[str, Any]:
        """What `velollm doctor --json` prints."""
        allowed = sorted(affinity)
        argv = [sys.executable, "-m", "velollm", "doctor", "--json", *options]
        if allowed:
            narrow = f"import os, sys; os.sched_setaffinity(0, {allowed}); os.execv(sys.argv[1], sys.argv[1:])"
            argv = [sys.executable, "-c", narrow, *argv]
        done = subprocess.run(argv, env=self.environ(**environ), capture_output=True, timeout=120)
        assert done.returncode in (0, 3), done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def checks_of(findings: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Findings by check; of several of one check, the first."""
    found: dict[str, dict[str, Any]] = {}
    for finding in findings:
        found.setdefault(finding["check"], dict(finding))
    return found


@contextmanager
def patient(root: Path, store: Path, **variables: str) -> Iterator[Patient]:
    """Start `velollm run -- ollama serve` with these variables over a copy of a models directory; end it."""
    binary = shutil.which("ollama")
    if binary is None:
        pytest.skip("there is no ollama on PATH")
    home, models, log = root / "home", root / "models", root / "server.log"
    home.mkdir(parents=True)
    shutil.copytree(store, models, copy_function=os.link)
    url = f"http://127.0.0.1:{_free_port()}"
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        found = Patient(url, home, log, client)
        own = {"OLLAMA_MODELS": str(models), "OLLAMA_NO_CLOUD": "1", **variables}
        with log.open("w") as file, subprocess.Popen(
            [sys.executable, "-m", "velollm", "run", "--", binary, "serve"],
            env=found.environ(**own),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        ) as process:  # fmt: skip
            try:
                _wait(process, log)
                yield found
            finally:
                process.terminate()
                process.wait(30)


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    clock, until = threading.Event(), time.monotonic() + _START_S
    while not re.search(r'msg="vram-based default context"', log.read_text(errors="replace")):
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < until
        clock.wait(0.02)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
