"""Every test gets a home of its own: nothing may touch the user's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fake_ollama import FakeOllama, fake_ollama
from velollm.models.synthetic import TINY, ensure_model

# A fresh clone has no cache of unicode tables, and the first draw of a text is slow.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VELOLLM_HOME", str(home / "velollm"))
    for name in ("OLLAMA_HOST", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made model, to be read only."""
    return ensure_model(TINY, tmp_path_factory.mktemp("made"))


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    """A fake Ollama that answers from recordings; skips where they are absent."""
    with fake_ollama() as server:
        yield server
