"""Every check against its YAML of cases, and the shape that the cases must have."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from velollm.doctor.base import SEVERITIES, Finding, RestartMend
from velollm.doctor.diagnose import load_checks
from velollm.facts import Facts

HERE = Path(__file__).parent
CHECKS = {check.name: check for check in load_checks()}
CASES: dict[str, list[dict[str, Any]]] = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((HERE / "cases").glob("*.yaml"))
}
KEYS = {"name", "kind", "facts", "findings", "never"}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_has_cases_of_all_three_kinds(name: str) -> None:
    assert name in CASES, f"tests/doctor/cases/{name}.yaml is missing"
    assert {case["kind"] for case in CASES[name]} == {"fires", "silent", "unknown"}


@pytest.mark.parametrize("name", CASES)
def test_cases_belong_to_a_check_and_use_known_keys(name: str) -> None:
    assert name in CHECKS
    for case in CASES[name]:
        assert set(case) <= KEYS, case["name"]
        assert bool(case.get("findings")) == (case["kind"] == "fires"), case["name"]


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_documented(name: str) -> None:
    check = CHECKS[name]
    assert check.title
    assert check.doc
    assert check.severity in SEVERITIES


@pytest.mark.parametrize("name", CHECKS)
def test_the_worst_severity_is_reached_in_a_case(name: str) -> None:
    found = {finding["severity"] for case in CASES[name] for finding in case.get("findings", ())}
    assert min(found, key=SEVERITIES.index) == CHECKS[name].severity


@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(name, case, id=f"{name}: {case['name']}") for name in CASES for case in CASES[name]]
)
def test_case(name: str, case: dict[str, Any]) -> None:
    findings = list(CHECKS[name].run(Facts.model_validate(case["facts"])))
    expected = case.get("findings", [])
    assert len(findings) == len(expected), [finding.title for finding in findings]
    for finding, wanted in zip(findings, expected, strict=True):
        check_finding(name, finding, wanted)
    if "never" in case:
        assert case["never"] not in repr(findings)


def check_finding(name: str, finding: Finding, wanted: dict[str, Any]) -> None:
    assert finding.check == name
    assert finding.severity == wanted["severity"]
    assert SEVERITIES.index(finding.severity) >= SEVERITIES.index(CHECKS[name].severity)
    assert wanted.get("title", "") in finding.title
    assert wanted.get("fix", "") in finding.fix
    assert finding.fix
    assert finding.evidence, "a finding needs evidence"
    assert any(wanted.get("evidence", "") in item.value for item in finding.evidence)
    assert any(wanted.get("where", "") in item.where for item in finding.evidence)
    assert finding.why, "a finding says why it matters"
    assert "\n" not in finding.why
    if "mend" in wanted:
        restart = isinstance(finding.mend, RestartMend)
        assert wanted["mend"] == ("restart" if restart else finding.mend and asdict(finding.mend))


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_known_is_nothing_found(name: str) -> None:
    assert not list(CHECKS[name].run(Facts()))
