"""SIGKILL at every journalled step of every place; `undo` in a fresh process restores all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.crash_targets import MODEL_SCENES, SCENES
from tests.fake_ollama import FakeOllama
from tests.program import SRC

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs to fork")
ENOUGH = 60


def run_kills(*arguments: str) -> list[dict[str, Any]]:
    """Every kill and what came of it, in memory where there is such a place, since each step waits for the disk."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    environ = {**os.environ, "PYTHONPATH": f"{SRC}{os.pathsep}{SRC.parent}"}
    with tempfile.TemporaryDirectory(prefix="velollm-test-", dir=base) as directory:
        program = [sys.executable, str(SRC.parent / "tests" / "crash_targets.py"), directory, *arguments]
        done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kills: list[dict[str, Any]]) -> None:
    assert [kill for kill in kills if not kill["killed"] or kill["undo"] != 0 or kill["differs"]] == []


def test_killed_at_every_step_of_every_place() -> None:
    kills = run_kills()
    check(kills)
    pairs = {(kill["place"], kill["step"]) for kill in kills}
    assert len(pairs) == len(kills) >= ENOUGH
    assert {place for place, _ in pairs} == {scene.name for scene in SCENES}
    for scene in SCENES:
        mine = [kill for kill in kills if kill["place"] == scene.name]
        told = {kill["step"].partition(" ")[2].rstrip(" 0123456789") for kill in mine}
        assert told >= {"before", "stage", "write", "done", "end", "restore", "undone"}
        # A kill that changes nothing proves nothing: between the first write and the end, each leaves a change.
        assert all(kill["changed"] for kill in mine if kill["step"].startswith(("apply done", "apply end")))


def test_killed_at_every_step_of_a_model(fake: FakeOllama) -> None:
    before = fake.digests()
    kills = run_kills(fake.url)
    check(kills)
    assert {kill["place"] for kill in kills} == {scene.name for scene in MODEL_SCENES}
    assert fake.digests() == before
