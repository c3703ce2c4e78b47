"""A real Ollama of the tests' own: its own home, its own models, a free port."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.shared import shared_dir

MODEL = "tiny-python"
_START_S = 60.0


@dataclass(frozen=True)
class RealOllama:
    """A server with the model `tiny-python`. ``models`` is its models directory."""

    url: str
    pid: int
    models: Path
    home: Path

    def get(self, path: str) -> dict[str, object]:
        reply = httpx.get(self.url + path, trust_env=False)
        data = reply.raise_for_status().json()
        assert isinstance(data, dict)
        return data

    def digests(self) -> dict[str, str]:
        """Digest of each installed name."""
        found = self.get("/api/tags")["models"]
        assert isinstance(found, list)
        return {model["name"]: model["digest"] for model in found}

    def tree(self) -> dict[str, str]:
        """Every path of the models directory: a file with the hash of its content, a directory as such."""
        return {str(path.relative_to(self.models)): _describe(path) for path in sorted(self.models.rglob("*"))}

    def environ(self, home: Path) -> dict[str, str]:
        """Environment of a user's command that finds this server, and nothing else of Ollama's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "LLAMA_"))}
        source = str(Path(__file__).resolve().parents[1] / "src")
        own = {"HOME": str(home), "VELOLLM_HOME": str(home / "velollm"), "TMPDIR": str(home), "PYTHONPATH": source}
        return {**kept, **own, "OLLAMA_HOST": self.url}


def _describe(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"


@contextmanager
def real_ollama(root: Path, *, uid: int | None = None, host: str = "127.0.0.1") -> Iterator[RealOllama]:
    """Start it, make the model, end it; as the user ``uid``, who alone may then read its files.

    Skips where there is no `ollama` or no model file.
    """
    binary = shutil.which("ollama")
    if binary is None:
        pytest.skip("there is no ollama on PATH")
    weights = (shared_dir("models") / "tiny-python-5m-f16.gguf").read_bytes()
    home, models = root / "home", root / "models"
    home.mkdir()
    models.mkdir()
    if uid is not None:
        for place in (home, models):
            place.chmod(0o700)
            os.chown(place, uid, uid)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    own = {"HOME": str(home), "OLLAMA_HOST": f"{host}:0", "OLLAMA_MODELS": str(models), "OLLAMA_NO_CLOUD": "1"}
    with subprocess.Popen(
        [binary, "serve"],
        env={**kept, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    ) as process:
        reader = _Reader(process)
        try:
            url = f"http://{reader.wait()}"
            _make_model(url, weights)
            yield RealOllama(url, process.pid, models, home)
        finally:
            process.terminate()
            process.wait(20)
            reader.thread.join(20)


class _Reader:
    """Empties the server's standard error, and waits for the line that says where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._found = threading.Event()
        self._address = ""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if not self._address and (match := re.search(r'msg="Listening on (\S+) ', line)):
                self._address = match.group(1)
                self._found.set()
        self._found.set()

    def wait(self) -> str:
        assert self._found.wait(_START_S)
        assert self._address, "ollama did not start"
        return self._address


def _make_model(url: str, weights: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        client.post(f"/api/blobs/{digest}", content=weights).raise_for_status()
        body = {"model": MODEL, "files": {"tiny.gguf": digest}, "parameters": {"stop": ["<|end|>"]}, "stream": False}
        client.post("/api/create", json=body).raise_for_status()


def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOllama]:
    """A server for the tests of one module, each of which makes it a fixture of its own name."""
    with real_ollama(tmp_path_factory.mktemp("ollama")) as found:
        yield found
