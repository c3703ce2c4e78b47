"""The house's import table, as data, and the cap on a module's length."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "velollm"
LINE_CAP = 400

# Room: what it may import. What those may import, it may import too.
TABLE: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "config": {"errors"},
    "discover": set(),
    "facts": {"units"},
    "knobs": {"units"},
    "models": {"errors", "config", "facts", "knobs"},
    "backends": {"errors", "config", "facts", "knobs"},
    "targets": {"errors", "config", "knobs", "backends"},
    "probe": {"facts", "backends", "targets"},
    "estimate": {"models", "backends", "probe"},
    "rules": {"facts", "knobs", "models"},
    "plan": {"rules", "backends", "targets"},
    "journal": {"plan", "targets"},
    "apply": {"plan", "targets", "journal"},
    "bench": {"backends", "facts", "knobs"},
    "tune": {"plan", "bench"},
    "doctor": {"facts", "knobs"},
    "recommend": {"probe", "models", "estimate", "rules", "bench"},
    "draft": {"probe", "models", "plan", "recommend"},
    "autopilot": {"probe", "models", "estimate", "plan", "apply", "bench", "tune", "doctor", "draft"},
    "status": {"probe", "apply"},
    "report": {"facts", "plan", "bench", "tune", "doctor", "apply", "status", "estimate", "recommend", "draft"},
    "gateway": {"backends", "facts", "config"},
    "dashboard": {"probe", "gateway"},
}
FOR_ALL = {"errors", "units", "config", "discover"}
EVERYTHING = {"cli", "__main__", "__init__"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Full dotted names of VeloLLM's own modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith("velollm.")}


@cache
def allowed(room: str) -> frozenset[str]:
    """Rooms that ``room`` may import: its own row, the closure of it, and the row that is for all."""
    reached = set(TABLE[room]) | FOR_ALL
    for other in TABLE[room]:
        reached |= allowed(other)
    return frozenset(reached | {room})


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_table(path: Path) -> None:
    room = room_of(path)
    if room in EVERYTHING:
        return
    assert room in TABLE, f"{room} is no room of the house"
    for name in imports_of(path):
        target = name.split(".")[1]
        if target in TABLE or target in EVERYTHING:
            assert target in allowed(room), f"{room} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_is_short_enough(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINE_CAP


def module_name(path: Path) -> str:
    parts = ("velollm", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_cycles() -> None:
    names = {module_name(path): path for path in modules()}
    graph = {
        name: {other for other in imports_of(path) if other in names and other != name} for name, path in names.items()
    }
    # Raises CycleError where two modules need each other.
    assert list(TopologicalSorter(graph).static_order())


def test_the_table_itself_has_no_cycle() -> None:
    assert list(TopologicalSorter(TABLE).static_order())


def test_a_backward_import_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from velollm.plan import Plan\n", encoding="utf-8")
    assert "velollm.plan" in imports_of(wrong)
    assert "plan" not in allowed("rules")
