from __future__ import annotations

from pathlib import Path

import pytest

from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.tune.heat import Race, Tried
from velollm.tune.record import Confirmed, Subject, find_race, keep_race, last_race, machine_of, what_changed

SUBJECT = Subject("linux | CPU | 4 | 16", "sha256-abc", "ollama 0.33.0", "code")
TRIED = Tried("threads", "threads=3", {"threads": 3}, "won", "", 1.3, 1.2, 1.4, 5)
RACE = Race({"threads": 4, "draft_model": None}, {"threads": 3, "draft_model": None}, (TRIED,), ("threads",), 0.03)
CONFIRMED = Confirmed("turn", 1.25, 1.2, 1.3, "faster")


def test_there_and_back(tmp_path: Path) -> None:
    kept = keep_race(tmp_path, SUBJECT, RACE, CONFIRMED, acceptance=0.5)
    assert kept.is_final
    assert kept.knobs == {"threads": 3}
    assert find_race(tmp_path, SUBJECT) == kept
    assert last_race(tmp_path, "sha256-abc", "code") == kept
    assert find_race(tmp_path, Subject("linux", "sha256-abc", "ollama 0.33.0", "code")) is None


def test_an_unconfirmed_one_is_not_final(tmp_path: Path) -> None:
    assert not keep_race(tmp_path, SUBJECT, RACE, None).is_final


def test_what_is_damaged_counts_as_none(tmp_path: Path) -> None:
    keep_race(tmp_path, SUBJECT, RACE, CONFIRMED)
    (path,) = (tmp_path / "races").iterdir()
    for text in (
        "",
        "{",
        "[]",
        '{"schema_version": 1}',
        path.read_text().replace('"schema_version": 1', '"schema_version": 9'),
    ):
        path.write_text(text)
        assert find_race(tmp_path, SUBJECT) is None
        assert last_race(tmp_path, "sha256-abc", "code") is None


def test_another_engine_or_machine_asks_for_a_new_race() -> None:
    newer = Subject(SUBJECT.machine, SUBJECT.model, "ollama 0.34.0", "code")
    assert what_changed(SUBJECT, newer) == "the engine was ollama 0.33.0 and is ollama 0.34.0"
    assert "the machine was" in (what_changed(SUBJECT, Subject("other", "m", "ollama 0.33.0", "code")) or "")
    assert what_changed(SUBJECT, SUBJECT) is None


def test_a_new_driver_is_another_machine() -> None:
    def gpu(driver: str) -> str:
        return machine_of(Facts.model_validate({"gpus": [{"name": "RTX", "vram_bytes": 8, "driver_version": driver}]}))

    assert gpu("550.1") != gpu("560.1")
    assert "unknown" in machine_of(Facts())


def test_where_it_cannot_be_written_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "races").write_text("in the way")
    with pytest.raises(VeloError, match=r"races"):
        keep_race(tmp_path, SUBJECT, RACE, CONFIRMED)
