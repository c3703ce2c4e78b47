from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import velollm.targets
from velollm.apply import Write, apply_writes, undo_flight
from velollm.errors import VeloError
from velollm.journal import FlightMeta, Journal
from velollm.targets.base import ABSENT, State, canonical_json, target_from_address
from velollm.targets.file import FileTarget

# A place that is no file: a table of parameters behind a name, as an engine's API has it.
PLUGIN = """
import json
from velollm.targets.base import State, Target, canonical_json

TABLE = {}

class TableTarget(Target):
    kind = "table"
    def __init__(self, name): self.name = name
    @property
    def label(self): return f"table {self.name}"
    def address(self): return {"kind": "table", "name": self.name}
    @classmethod
    def from_address(cls, address): return cls(address["name"])
    def read(self):
        value = TABLE.get(self.name)
        return State(None if value is None else canonical_json(value))
    def write(self, state):
        if state.content is None: TABLE.pop(self.name, None)
        else: TABLE[self.name] = json.loads(state.content)

target = TableTarget
"""


@given(
    st.one_of(st.none(), st.binary()),
    *[st.one_of(st.none(), st.integers(0, 0o7777))] * 3,
    st.lists(st.text("/ab é\n\udcff")),
)
def test_a_state_survives_the_journal(
    content: bytes | None, mode: int | None, uid: int | None, gid: int | None, dirs: list[str]
) -> None:
    state = State(content, mode, uid, gid, tuple(dirs))
    found = State.from_json(state.to_json())
    assert found == state
    assert found.missing_dirs == state.missing_dirs


@given(st.binary())
def test_text_of_a_state_loses_no_byte(content: bytes) -> None:
    assert State.of_text(State(content).text).content == content


def test_a_changed_bit_in_a_journalled_state_is_seen() -> None:
    record = State(b"threads: 4").to_json() | {"content": State(b"threads: 5").to_json()["content"]}
    with pytest.raises(ValueError, match="not the one"):
        State.from_json(record)


@pytest.mark.parametrize("value", [None, [], "x", {"content": None}, {**ABSENT.to_json(), "missing_dirs": "ab"}])
def test_what_is_no_state_is_refused(value: object) -> None:
    with pytest.raises((TypeError, KeyError)):
        State.from_json(value)  # type: ignore[arg-type]


def test_matching_ignores_what_is_not_asked_for() -> None:
    there = State(b"x", 0o600, 7, 8)
    assert there.matches(State(b"x"))
    assert there.matches(State(b"x", mode=0o600))
    assert not there.matches(State(b"x", mode=0o644))
    assert not there.matches(State(b"x", uid=0))
    assert not there.matches(State(b"y"))
    assert not there.matches(ABSENT)


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": [1, "ä"], "a": None}) == canonical_json({"a": None, "b": [1, "ä"]})


def test_a_file_target_is_found_again_from_its_address(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "engine.env")
    found = target_from_address(target.address())
    assert isinstance(found, FileTarget)
    assert found.key == target.key


@pytest.mark.parametrize("address", [{}, {"kind": "nowhere"}, {"kind": "file"}, {"kind": "file", "path": 3, "real": 4}])
def test_an_address_that_leads_nowhere_is_an_error_with_a_hint(address: dict[str, object]) -> None:
    with pytest.raises(VeloError) as caught:
        target_from_address(address)  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_new_target_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "table.py").write_text(PLUGIN)
    monkeypatch.setattr(velollm.targets, "__path__", [*velollm.targets.__path__, str(tmp_path / "plugin")])
    try:
        place = target_from_address({"kind": "table", "name": "m"})
        place.write(State(canonical_json({"num_ctx": 4096})))
        journal = Journal(tmp_path / "journal")
        write = Write(place, State(canonical_json({"num_ctx": 8192})))
        new = Write(target_from_address({"kind": "table", "name": "m-before"}), State(b"1"))
        assert apply_writes([write, new], journal, FlightMeta("1", "ollama", "m", "")) is not None
        assert place.read().text == '{"num_ctx":8192}'
        result = undo_flight(journal)
        assert result.restored == ("table m-before", "table m")
        assert place.read().text == '{"num_ctx":4096}'
        assert new.target.read() == ABSENT
    finally:
        sys.modules.pop("velollm.targets.table", None)
        vars(velollm.targets).pop("table", None)
