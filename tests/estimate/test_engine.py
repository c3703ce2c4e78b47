"""What is asked of an engine that cannot be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.test_memory import model
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_find import ServerProcess
from velollm.backends.ollama_http import LoadedModel
from velollm.errors import VeloError
from velollm.estimate import engine
from velollm.estimate.engine import ask_engine
from velollm.estimate.find import Found
from velollm.estimate.kept import find_kept
from velollm.facts import Facts
from velollm.knobs import KnobValue
from velollm.models.memory import estimate_memory
from velollm.units import MIB

SHAPE = model(file_bytes=2 * MIB)
KNOBS: dict[str, KnobValue] = {"context_tokens": 4096, "slots": 2}


class Running(OllamaBackend):
    """A server that has a model loaded, of which only the process list and `/api/ps` can be seen."""

    version = "0.33.0"
    binary = None

    def __init__(self, slots: str, size_bytes: int) -> None:
        super().__init__("http://127.0.0.1:9")
        child = ("llama-server", "-c", "8192", "-np", slots)
        self.process = ServerProcess(1, None, None, (), None, children=((2, child),))
        self._size_bytes = size_bytes

    def missing(self) -> str | None:
        return "the ollama program is not here: install it"

    def holding(self) -> list[LoadedModel]:
        return [LoadedModel("made:latest", self._size_bytes, 0, context_tokens=4096)]


def ask(monkeypatch: pytest.MonkeyPatch, running: Running, data: Path, path: Path) -> int:
    monkeypatch.setattr(engine, "iter_backends", lambda: iter([running]))
    found = ask_engine("ollama", "made", Found(SHAPE, path, "ollama"), KNOBS, Facts(gpus=()), data)
    assert {device.basis for device in found.devices} == {"corrected"}
    return found.total_bytes


def test_the_total_of_a_running_server_is_taken_and_kept_with_its_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "sha256-made"
    expected = estimate_memory(SHAPE, KNOBS)
    assert expected is not None
    size = expected.total_bytes * 105 // 100
    assert ask(monkeypatch, Running("2", size), tmp_path, path) == pytest.approx(size, rel=0.001)
    kept = find_kept(tmp_path, SHAPE, path)
    assert kept is not None
    assert kept.source == "/api/ps"


def test_a_server_with_other_slots_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="no engine can be asked"):
        ask(monkeypatch, Running("1", 100 * MIB), tmp_path, tmp_path / "sha256-made")
    assert find_kept(tmp_path, SHAPE, tmp_path / "sha256-made") is None
