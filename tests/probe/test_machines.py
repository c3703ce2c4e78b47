"""The captured machines: what the product says of each must be what its `expected.yaml` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shared import find_shared, shared_dir
from velollm.probe.machine import probe_capture

# The publisher tells this size in words; none of the captured texts holds it.
_NOT_IN_CAPTURE = {("27-container-one-cpu-512-mb", "memory.host_approx_gb")}


def _names() -> list[str]:
    folder = find_shared("machines")
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder is not None else []


def _differences(expected: Any, actual: Any, path: str, accept: dict[str, list[Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Path, expected and actual value of everything that is not as expected."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key, value in expected.items():
            yield from _differences(value, actual.get(key, "no such key"), f"{path}.{key}".lstrip("."), accept)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for place, (one, other) in enumerate(zip(expected, actual, strict=True)):
            yield from _differences(one, other, f"{path}.{place}", accept)
    elif expected != actual and actual not in accept.get(path.rpartition(".")[2], []):
        yield path, expected, actual


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip("no shared machines"))])
def test_facts_are_what_the_capture_says(name: str) -> None:
    folder = shared_dir("machines") / name
    described = yaml.safe_load((folder / "expected.yaml").read_text(encoding="utf-8"))
    expect = dict(described["expect"])
    accept = expect.pop("accept", None) or described.get("accept") or {}
    facts = probe_capture(folder).model_dump(mode="json")
    wrong = [d for d in _differences(expect, facts, "", accept) if (name, d[0]) not in _NOT_IN_CAPTURE]
    assert wrong == []


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip("no shared machines"))])
def test_every_host_fact_says_where_it_was_read(name: str) -> None:
    facts = probe_capture(shared_dir("machines") / name)
    for section in ("cpu", "memory", "cgroup", "power", "thermal"):
        known = getattr(facts, section)
        for key, value in known.model_dump().items() if known is not None else ():
            assert value is None or facts.sources.get(f"{section}.{key}"), f"{section}.{key} has no source"


def test_expected_answers_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "lscpu.txt").write_text("CPU(s): 2\nOn-line CPU(s) list: 0,1\n")
    (tmp_path / "expected.yaml").write_text("CPU(s): 64\nexpect: {cpu: {logical_cores: 64}}\n")
    cpu = probe_capture(tmp_path).cpu
    assert cpu is not None
    assert cpu.logical_cores == 2
