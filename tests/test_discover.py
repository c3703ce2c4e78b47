from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from velollm.discover import collect, load_modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of four modules, of which `base` is never loaded."""
    name = "found_by_discovery"
    root = tmp_path / name
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "__init__.py").write_text("thing = 'inner'\n")
    files = {
        "__init__": "",
        "base": "raise AssertionError('base is no member')\n",
        "zebra": "thing = 'zebra'\n",
        "ant": "thing = ['ant', 7, 'bee']\n",
        "mole": "other = 'mole'\n",
        "newt": "thing = 7\n",
    }
    for module, text in files.items():
        (root / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_modules_come_in_name_order_without_base(package: str) -> None:
    names = [module.__name__.rpartition(".")[2] for module in load_modules(package)]
    assert names == ["ant", "inner", "mole", "newt", "zebra"]


def test_collect_takes_things_of_one_kind_alone_or_in_lists(package: str) -> None:
    assert collect(package, "thing", str) == ("ant", "bee", "inner", "zebra")
    assert collect(package, "thing", int) == (7, 7)
    assert collect(package, "nothing", str) == ()


def test_adding_a_file_is_all_it_takes(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "cat.py").write_text("thing = 'cat'\n")
    assert "cat" in collect(package, "thing", str)
