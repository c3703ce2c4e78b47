"""Run the checks, and choose what to mend first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from velollm.discover import collect
from velollm.doctor.base import SEVERITIES, Check, Finding
from velollm.errors import UsageError
from velollm.facts import Facts


def load_checks() -> tuple[Check, ...]:
    """All checks of `velollm.doctor`, by name."""
    return tuple(sorted(collect("velollm.doctor", "check", Check), key=lambda check: check.name))


def choose_checks(names: Sequence[str]) -> tuple[Check, ...]:
    """The checks of these names; all of them where none is named. Raises `UsageError` for a name that is none."""
    checks = {check.name: check for check in load_checks()}
    for name in names:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=3, cutoff=0.5)
            hint = f"near it: {', '.join(near)}" if near else "`velollm doctor --list` names them"
            raise UsageError(f"there is no check '{name}'", hint)
    return tuple(check for name, check in checks.items() if not names or name in names)


def diagnose(facts: Facts, checks: Iterable[Check] | None = None) -> list[Finding]:
    """What the checks find, the gravest first, then by check, then by title."""
    chosen = load_checks() if checks is None else checks
    findings = [finding for check in chosen for finding in check.run(facts)]
    return sorted(findings, key=lambda found: (SEVERITIES.index(found.severity), found.check, found.title))


def is_serious(findings: Iterable[Finding]) -> bool:
    """Is any of them more than a note?"""
    return any(finding.severity != "note" for finding in findings)


def compare_findings(
    before: Iterable[Finding], after: Sequence[Finding]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Of earlier findings those that are gone, and those that are still there.

    Only the check has to be the same, and the title but for its numbers: what is measured differs from look to look.
    """
    there = {_kind(finding) for finding in after}
    found = tuple(before)
    gone = tuple(finding for finding in found if _kind(finding) not in there)
    return gone, tuple(finding for finding in found if _kind(finding) in there)


def _kind(finding: Finding) -> tuple[str, str]:
    return finding.check, re.sub(r"\d[\d.,]*", "0", finding.title)


def worst_three(findings: Sequence[Finding]) -> list[Finding]:
    """At most three findings to mend first, the worst of each check; notes are none of them."""
    worst: dict[str, Finding] = {}
    for found in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        if found.severity != "note":
            worst.setdefault(found.check, found)
    return list(worst.values())[:3]
