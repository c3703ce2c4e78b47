"""Real Ollama servers that are not ours to see into: another user's, and one at another machine's address.

A server of another user is the usual case on Linux: a service with a user of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.program import SRC, document, run_cli
from tests.real_ollama import MODEL, RealOllama, real_ollama

pytestmark = pytest.mark.ollama
SERVER_UID, USER_UID = 65534, 65533
# Our own interpreter may lie in a home that the other user cannot enter.
PYTHON = "/usr/bin/python3"


def packages() -> str:
    return next(path for path in sys.path if path.endswith("site-packages"))


def is_usable(python: str) -> bool:
    if not Path(python).exists():
        return False
    found = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    return found.stdout.strip() == str(sys.version_info[:2])


class OtherUser:
    """Starts commands as somebody who is neither root nor the server's user."""

    def __init__(self, home: Path, url: str) -> None:
        home.parent.chmod(0o755)
        home.mkdir()
        self.home = home
        os.chown(home, USER_UID, USER_UID)
        path = os.pathsep.join((str(SRC), packages()))
        own = {"HOME": str(home), "VELOLLM_HOME": str(home / "velollm"), "TMPDIR": str(home), "PYTHONPATH": path}
        self._environ = {**own, "PATH": os.environ["PATH"], "OLLAMA_HOST": url, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, "-m", "velollm", *arguments],
            env=self._environ,
            user=USER_UID,
            group=USER_UID,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )

    def json(self, *arguments: str, status: int) -> dict[str, Any]:
        done = self.run(*arguments, "--json")
        assert done.returncode == status, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def open_place() -> Iterator[Path]:
    """A directory that everybody may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="velollm-test-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


@pytest.fixture(scope="module")
def theirs(open_place: Path) -> Iterator[RealOllama]:
    if sys.platform != "linux" or os.geteuid() != 0 or not is_usable(PYTHON):
        pytest.skip("needs root, to be two other users, and a Python that they may run")
    with real_ollama(open_place, uid=SERVER_UID) as server:
        yield server


@pytest.fixture
def user(theirs: RealOllama, open_place: Path) -> OtherUser:
    return OtherUser(Path(tempfile.mkdtemp(dir=open_place)) / "home", theirs.url)


def unread(facts: Mapping[str, Any]) -> dict[str, str]:
    return {item["what"]: item["help"] for item in facts["server"]["unreadable"]}


def test_what_can_be_known_of_another_users_server(theirs: RealOllama, user: OtherUser) -> None:
    httpx.post(f"{theirs.url}/api/generate", json={"model": MODEL}, trust_env=False, timeout=60).raise_for_status()
    done = user.run("doctor", "--json")
    facts = json.loads(done.stdout)["facts"]
    server = facts["server"]
    assert (server["pid"], server["version"]) == (theirs.pid, theirs.get("/api/version")["version"])
    assert server["user"] in ("nobody", str(SERVER_UID))
    assert server["argv"][-1] == "serve"
    assert server["installed"] == [f"{MODEL}:latest"]
    assert server["environment"] is None
    # What its engine runs with is on a command line, which everybody may read.
    assert server["loaded"][0]["slots"] == 1
    assert set(unread(facts)) == {"environment", "log", "models"}
    assert unread(facts)["environment"] == "sudo velollm doctor"
    assert unread(facts)["models"].startswith("sudo usermod -aG ")


def test_the_plan_is_made_from_what_the_server_shows_of_the_model(user: OtherUser) -> None:
    found = user.json("optimize", MODEL, "--dry-run", "--profile", "agent", status=3)
    model = found["facts"]["model"]
    assert (model["path"], model["architecture"], model["layers"], model["vocab"]) == (None, "llama", 6, 2048)
    assert model["tensor_bytes"] > 10_000_000
    knobs = {knob["name"]: knob for knob in found["knobs"]}
    assert "no model is known" not in knobs["context_tokens"]["reason"]


def test_a_flight_says_what_could_not_be_tried_and_changes_nothing(theirs: RealOllama, user: OtherUser) -> None:
    before = theirs.digests()
    done = user.run("optimize", MODEL, "--budget", "20s")
    assert done.returncode == 3, done.stderr
    assert "Not tried: the model's files cannot be read" in done.stdout
    assert "What it changes:" in done.stdout
    assert "--yes" not in done.stdout
    assert theirs.digests() == before


def test_a_flight_on_a_twin_there_and_back(theirs: RealOllama, user: OtherUser) -> None:
    before = theirs.digests()
    # What is pinned need not prove its speed: answers of a few tokens could not.
    dry = user.json("optimize", MODEL, "--dry-run", status=3)
    threads = next(knob["default"] for knob in dry["knobs"] if knob["name"] == "threads")
    pinned = ("context_tokens=1024", f"threads={threads}", "batch=512", "ubatch=512", "slots=1")
    pins = [word for pin in pinned for word in ("--set", pin)]
    found = user.json("optimize", MODEL, *pins, "--yes", "--budget", "25s", status=0)
    trial = found["trial"]
    assert all(run["error"] is None and run["answer_tokens"] > 0 for run in trial["runs"])
    assert trial["notes"][0].startswith(f"the model is a made one in the shape of {MODEL}: its speed is real")
    assert found["facts"]["model"]["made"]["like"] == MODEL
    assert "measured on a twin" in found["applied_reason"]
    twin = Path(found["twin"])
    assert twin.parent.parent.parent == user.home / "velollm" / "cache" / "twins"
    assert found["applied"] is True, found["applied_reason"]
    assert {change["key"] for change in found["changes"]} >= {"num_ctx"}
    # What the user's own server does with the real model is held against itself, not against the twin.
    assert found["before"]["arms"] == ["before"]
    assert found["confirmed"]["arms"] == ["applied"]
    assert theirs.digests()[f"{MODEL}:latest"] != before[f"{MODEL}:latest"]
    assert user.run("undo").returncode == 0
    assert theirs.digests() == before
    made_at = twin.stat().st_mtime_ns
    text = user.run("optimize", MODEL, *pins, "--budget", "10s")
    assert text.returncode == 3, text.stderr
    assert f"A twin of {MODEL} on the ollama engine" in text.stdout
    assert "Not applied, because nobody said yes" in " ".join(text.stdout.split())
    assert twin.stat().st_mtime_ns == made_at


def test_bench_measures_it_as_it_runs(user: OtherUser) -> None:
    found = user.json("bench", MODEL, "--quick", status=0)
    assert (found["arms"], found["ratio"]) == (["current"], {})
    assert all(run["error"] is None and run["decode_tokens_per_s"] > 0 for run in found["runs"])


def test_a_server_at_another_machines_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    with real_ollama(tmp_path_factory.mktemp("remote"), host="127.0.0.2") as remote:
        before = remote.digests()
        flight = run_cli("optimize", MODEL, "--yes", "--json", environ={"OLLAMA_HOST": remote.url})
        found = document(flight)
        assert (flight.returncode, found["applied"], found["flight"]) == (3, False, None)
        assert "on another machine" in found["applied_reason"]
        assert found["changes"]
        measured = document(run_cli("bench", MODEL, "--quick", "--json", environ={"OLLAMA_HOST": remote.url}))
        assert measured["arms"] == ["current"]
        doctor = document(run_cli("doctor", "--json", environ={"OLLAMA_HOST": remote.url}))
        assert doctor["facts"]["server"]["remote"] is True
        assert unread(doctor["facts"])["process"] == "run velollm there"
        assert remote.digests() == before
