"""Plans for machines from an 8 GB laptop to eight H200, held by bounds that were written by hand before the code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.facts import Facts, ModelFacts
from velollm.knobs import Wish
from velollm.models.catalog import find_catalog_model
from velollm.plan import load_profile
from velollm.rules.base import Skip
from velollm.rules.fit_memory import Solution, place_model

HERE = Path(__file__).parent
MACHINES: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((HERE / "machines").glob("*.yaml"))
}
CASES = [(name, case) for name, machine in MACHINES.items() for case in machine["cases"]]
KEYS = {"model", "profile", "why", "where", "spills", "context", "slots", "fits", "lacks"}
each_case = pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}: {case['model']} {case['profile']}") for name, case in CASES],
)


@cache
def model_of(name: str) -> ModelFacts:
    found = find_catalog_model(name)
    assert found is not None, name
    return found


def solve(name: str, case: Mapping[str, Any]) -> tuple[Facts, Wish, Solution | Skip]:
    model = model_of(case["model"])
    facts = Facts.model_validate(MACHINES[name]["facts"]).model_copy(update={"model": model})
    wish = Wish(load_profile(case["profile"]), ollama_default_knobs(facts), backend="ollama")
    return facts, wish, place_model(facts, model, wish)


def test_there_are_enough_machines_and_every_bound_is_reasoned() -> None:
    assert len(MACHINES) >= 25
    for name, case in CASES:
        assert set(case) <= KEYS, name
        assert case["why"]
        assert {"where", "fits", "lacks"} & set(case), name


@each_case
def test_a_plan_keeps_within_its_bounds(name: str, case: dict[str, Any]) -> None:
    _, _, solution = solve(name, case)
    if isinstance(solution, Skip):
        assert solution.lacked == (case.get("lacks"),), solution.reason
        return
    assert "lacks" not in case
    fit = solution.fit
    if case.get("fits") is False:
        assert fit is None, fit
        return
    assert fit is not None, solution.nearest
    assert fit.placement.where == case["where"], fit
    assert fit.placement.spills == case.get("spills"), fit
    for bound, value in (("context", fit.context), ("slots", fit.slots)):
        assert case.get(bound, {}).get("at_least", 0) <= value <= case.get(bound, {}).get("at_most", value), fit
