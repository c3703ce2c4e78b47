"""Every rule against its YAML of cases, and the shape that the cases must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from velollm.facts import Facts
from velollm.knobs import KNOBS, KnobValue, Profile, Wish
from velollm.plan import load_rules
from velollm.rules.base import Advice, Rule, Skip

HERE = Path(__file__).parent
RULES = {rule.id: rule for rule in load_rules()}
MODELS = yaml.safe_load((HERE / "models.yaml").read_text(encoding="utf-8"))
CASES: dict[str, list[dict[str, Any]]] = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((HERE / "cases").glob("*.yaml"))
}
KEYS = {
    *("name", "kind", "facts", "model", "profile", "defaults", "pins", "knobs", "backend", "without"),
    *("values", "candidates", "basis", "reason", "skip", "lacked", "at_most", "at_least"),
}
BASE = {"summary": "", "context_tokens": 4096, "slots": 1, "workload": "chat", "metric": "decode"}


def facts_of(case: dict[str, Any]) -> Facts:
    facts = dict(case.get("facts", {}))
    if "model" in case:
        facts["model"] = MODELS[case["model"]]
    return Facts.model_validate(facts)


def profile_of(case: dict[str, Any]) -> Profile:
    asked: dict[str, Any] = {**BASE, **case.get("profile", {})}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in asked.items()}
    return Profile(name="test", **values)


def wish_of(case: dict[str, Any]) -> Wish:
    supported = frozenset(KNOBS) - set(case.get("without", ()))
    return Wish(
        profile_of(case), case.get("defaults", {}), case.get("pins", {}), case.get("backend", "ollama"), supported
    )


def decide(rule: Rule, case: dict[str, Any]) -> Advice | Skip:
    return rule.decide(facts_of(case), case.get("knobs", {}), wish_of(case))


@pytest.mark.parametrize("rule_id", RULES)
def test_a_rule_has_cases_of_all_three_kinds(rule_id: str) -> None:
    assert rule_id in CASES, f"tests/rules/cases/{rule_id}.yaml is missing"
    assert {case["kind"] for case in CASES[rule_id]} == {"fires", "silent", "unknown"}


@pytest.mark.parametrize("rule_id", CASES)
def test_cases_belong_to_a_rule_and_use_known_keys(rule_id: str) -> None:
    assert rule_id in RULES
    for case in CASES[rule_id]:
        assert set(case) <= KEYS, case["name"]
        assert {"values", "skip", "lacked", "at_most"} & set(case), f"{case['name']} expects nothing"


@pytest.mark.parametrize("rule_id", RULES)
def test_a_rule_is_documented(rule_id: str) -> None:
    rule = RULES[rule_id]
    assert rule.title
    assert len(rule.doc.splitlines()) >= 3
    assert set(rule.sets) | set(rule.needs) <= set(KNOBS)


@pytest.mark.parametrize(
    ("rule_id", "case"),
    [pytest.param(rule_id, case, id=f"{rule_id}: {case['name']}") for rule_id in CASES for case in CASES[rule_id]],
)
def test_case(rule_id: str, case: dict[str, Any]) -> None:
    advice = decide(RULES[rule_id], case)
    if isinstance(advice, Skip):
        check_skip(advice, case)
    else:
        check_advice(RULES[rule_id], advice, case)
    check_kind(advice, case)


def check_skip(skip: Skip, case: dict[str, Any]) -> None:
    assert "skip" in case or "lacked" in case, f"skipped: {skip.reason}"
    assert case.get("skip", "") in skip.reason
    assert set(case.get("lacked", ())) <= set(skip.lacked)
    assert bool(skip.lacked) == ("lacked" in case)


def check_advice(rule: Rule, advice: Advice, case: dict[str, Any]) -> None:
    for skip in advice.left.values():
        if case.get("skip", "") in skip.reason and set(case.get("lacked", ())) <= set(skip.lacked):
            break
    else:
        assert not {"skip", "lacked"} & set(case), f"advised {advice.values}: {advice.reason}"
    assert set(advice.values) | set(advice.left) == set(rule.sets)
    for name, value in case.get("values", {}).items():
        assert advice.values[name] == value, advice.reason
    for name, value in case.get("at_most", {}).items():
        assert number(advice.values[name]) <= value, advice.reason
    for name, value in case.get("at_least", {}).items():
        assert number(advice.values[name]) >= value, advice.reason
    if "candidates" in case:
        assert [dict(candidate) for candidate in advice.candidates] == case["candidates"]
    named = {key for part in ("values", "at_most", "at_least") for key in case.get(part, ())} or {""}
    reasons, bases = zip(*(advice.why(name) for name in named), strict=True)
    for part in case.get("reason", ()):
        assert any(part in reason for reason in reasons), reasons
    assert case.get("basis", bases[0]) in bases


def number(value: KnobValue) -> float:
    assert isinstance(value, int | float)
    return value


def check_kind(advice: Advice | Skip, case: dict[str, Any]) -> None:
    """The kind of a case is what really happens in it, not a label."""
    defaults = case.get("defaults", {})
    changes = isinstance(advice, Advice) and any(
        defaults.get(name) != value
        for name, value in advice.values.items()
        if name not in case.get("without", ()) and (name in defaults or not defaults)
    )
    if case["kind"] == "fires":
        assert changes
    elif case["kind"] == "silent":
        assert not changes
    else:
        skips = [advice] if isinstance(advice, Skip) else advice.left.values()
        said = any(skip.lacked for skip in skips)
        assert said or "unknown" in advice.reason or "nothing was sampled" in advice.reason or not case.get("facts")


@pytest.mark.parametrize("rule_id", RULES)
def test_a_rule_survives_knowing_nothing(rule_id: str) -> None:
    advice = RULES[rule_id].decide(Facts(), {}, Wish(profile_of({})))
    assert advice.reason
