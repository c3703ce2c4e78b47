"""The machine of the last measurement."""

from __future__ import annotations

from pathlib import Path

from velollm.bench.history import Record
from velollm.bench.past import parse_past, read_past
from velollm.facts import Facts

FACTS = Facts.model_validate(
    {
        "cpu": {"model_name": "Ryzen 5"},
        "memory": {"total_bytes": 34_000_000_000},
        "gpus": [
            {"vendor": "nvidia", "name": "RTX 3060", "driver_version": "570.1"},
            {"vendor": "amd", "name": "780M"},
        ],
        "server": {"engine": "ollama", "version": "0.33.0"},
    }
)


def record(**changes: object) -> Record:
    facts = FACTS.model_dump(mode="json", exclude_none=True)
    given = {"id": "1", "taken_at": "2026-10-01T08:00:00+00:00", "model": "m", "backend": "ollama", "workload": "chat"}
    return Record.model_validate({**given, "quick": True, "facts": facts, "knobs": {}, "samples": [], **changes})


def test_what_is_compared_later() -> None:
    past = parse_past(record())
    assert past is not None
    assert past.when == "2026-10-01T08:00:00+00:00"
    assert (past.cpu, past.memory_bytes, past.gpus) == ("Ryzen 5", 34_000_000_000, ("780M", "RTX 3060"))
    assert (past.gpu_drivers, past.engine_version) == (("570.1",), "0.33.0")


def test_another_engine_says_nothing_of_ollama() -> None:
    past = parse_past(record(backend="embedded"))
    assert past is not None
    assert past.engine_version is None


def test_facts_of_another_version_are_unknown() -> None:
    assert parse_past(record(facts={"no_such_fact": 1})) is None


def test_the_newest_record_counts(tmp_path: Path) -> None:
    assert read_past(tmp_path) is None
    for version in ("0.32.0", "0.33.0"):
        facts = {**record().facts, "server": {"engine": "ollama", "version": version}}
        with (tmp_path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(record(facts=facts).model_dump_json() + "\n")
    past = read_past(tmp_path)
    assert past is not None
    assert past.engine_version == "0.33.0"
