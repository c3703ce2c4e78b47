"""Frozen facts: what is taken, what is refused, and that nothing is lost on the way to JSON and back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import CpuFacts, Facts, GpuFacts, MemoryFacts, ModelFacts, OptionReload, PcieFacts, ServerFacts
from velollm.facts.base import Frozen

COUNTS = st.none() | st.integers(0, 2**63)
TEXTS = st.none() | st.text(max_size=12)


class Leaf(Frozen):
    size: int
    share: float | None = None


class Tree(Frozen):
    kind: Literal["oak", "elm"]
    pair: tuple[str, int] | None = None
    leaves: tuple[Leaf, ...] = ()
    by_name: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: int | tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return len(self.leaves)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"pair": ["a", 1]}, "pair", ("a", 1)),
        ({"leaves": [{"size": 1}, Leaf(size=2)]}, "leaves", (Leaf(size=1), Leaf(size=2))),
        ({"leaves": [{"size": 1.0, "share": 1}]}, "leaves", (Leaf(size=1, share=1.0),)),
        ({"by_name": {"x": [1, 2]}}, "by_name", {"x": (1, 2)}),
        ({"width": 3}, "width", 3),
        ({"width": [3, 4]}, "width", (3, 4)),
    ],
)
def test_what_fits_is_taken(given: dict[str, Any], field: str, value: object) -> None:
    found = Tree.model_validate({"kind": "oak", **given})
    assert getattr(found, field) == value
    assert type(getattr(found, field)) is type(value)
    assert Tree.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "kind"),
        ({"kind": "ash"}, "kind"),
        ({"kind": "oak", "height": 3}, "height"),
        ({"kind": "oak", "pair": ["a"]}, "pair"),
        ({"kind": "oak", "width": "wide"}, "width"),
        ({"kind": "oak", "leaves": {"size": 1}}, "leaves"),
        ({"kind": "oak", "leaves": [{"size": 1.5}]}, "leaves"),
        ({"kind": "oak", "by_name": {3: [1]}}, "by_name"),
        ({"kind": "oak", "by_name": None}, "by_name"),
        ("oak", "Tree"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tree.model_validate(given)


def test_facts_do_not_change() -> None:
    tree = Tree(kind="elm", leaves=(Leaf(size=1),))
    with pytest.raises(FrozenInstanceError):
        tree.kind = "oak"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del tree.kind
    changed = tree.model_copy(update={"width": 2})
    assert (tree.width, changed.width, changed.leaves, changed.count) == (None, 2, tree.leaves, 1)
    assert changed != tree
    assert len({Leaf(size=1), Leaf(size=1), Leaf(size=2)}) == 2
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert repr(Leaf(size=1)) == "Leaf(size=1, share=None)"


def test_defaults_are_nobody_elses() -> None:
    first, second = Tree(kind="oak"), Tree(kind="oak")
    assert first == second
    assert first.by_name == {}
    assert first.by_name is not second.by_name
    assert list(Tree.field_names()) == ["kind", "pair", "leaves", "by_name", "width"]


def test_what_is_left_out_of_a_dump() -> None:
    facts = Facts(os="linux", cpu=CpuFacts(sockets=1), server=ServerFacts(slots=None, unreadable=()))
    dumped = facts.model_dump(exclude_none=True, exclude={"sources"})
    assert dumped["cpu"] == {"sockets": 1}
    assert "sources" not in dumped
    assert facts.model_dump(exclude_defaults=True) == {"os": "linux", "cpu": {"sockets": 1}, "server": {}}
    pair = OptionReload(model="m", changes={"c": ("1", None)})
    assert pair.model_dump(mode="json", exclude_none=True)["changes"] == {"c": ["1", None]}


@given(st.data())
def test_facts_survive_json(data: st.DataObject) -> None:
    gpus = st.builds(
        GpuFacts,
        name=TEXTS,
        vram_bytes=COUNTS,
        power_limit_watts=st.none() | st.floats(0, 1e4),
        pcie=st.none() | st.builds(PcieFacts, gen=COUNTS, width=COUNTS),
        throttle_reasons=st.none() | st.lists(st.text(max_size=5), max_size=3).map(tuple),
    )
    facts = Facts(
        os=data.draw(TEXTS),
        memory=data.draw(
            st.none() | st.builds(MemoryFacts, total_bytes=COUNTS, approx_gib=st.none() | st.floats(0, 9))
        ),
        gpus=data.draw(st.none() | st.lists(gpus, max_size=3).map(tuple)),
        libraries=data.draw(st.dictionaries(st.text(max_size=5), st.booleans(), max_size=3)),
        model=data.draw(st.none() | st.builds(ModelFacts, name=st.text(max_size=5), layers=COUNTS)),
    )
    dumped = facts.model_dump(mode="json")
    assert Facts.model_validate(json.loads(json.dumps(dumped))) == facts
    assert Facts.model_validate_json(facts.model_dump_json()) == facts
    assert Facts.model_validate(facts.model_dump(exclude_none=True)) == facts
