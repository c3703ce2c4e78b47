"""Run the checks, and choose what to mend first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from velollm.discover import collect
from velollm.doctor.base import SEVERITIES, Check, Finding
from velollm.facts import Facts


def load_checks() -> tuple[Check, ...]:
    """All checks of `velollm.doctor`, by name."""
    return tuple(sorted(collect("velollm.doctor", "check", Check), key=lambda check: check.name))


def diagnose(facts: Facts, checks: Iterable[Check] | None = None) -> list[Finding]:
    """What the checks find, the gravest first, then by check, then by title."""
    chosen = load_checks() if checks is None else checks
    findings = [finding for check in chosen for finding in check.run(facts)]
    return sorted(findings, key=lambda found: (SEVERITIES.index(found.severity), found.check, found.title))


def worst_three(findings: Sequence[Finding]) -> list[Finding]:
    """At most three findings to mend first, the worst of each check; notes are none of them."""
    worst: dict[str, Finding] = {}
    for found in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        if found.severity != "note":
            worst.setdefault(found.check, found)
    return list(worst.values())[:3]
