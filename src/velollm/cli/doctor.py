"""`velollm doctor`: what this machine is, and what is wrong or wasteful."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from velollm.cli.shared import JsonOption, console, print_json
from velollm.errors import EXIT_ADVISED


def command(
    list_: Annotated[bool, typer.Option("--list", help="List the checks instead of running them.")] = False,
    capture: Annotated[
        Path | None,
        typer.Option("--capture", metavar="DIR", help="Read a captured machine from DIR instead of this one."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what this machine is, what is wrong or wasteful, and which command mends it.

    Leaves with 3 where something is worth mending; a note alone does not count.

    Example: velollm doctor --json
    """
    from velollm.discover import collect
    from velollm.doctor.base import Check

    checks = collect("velollm.doctor", "check", Check)
    if list_:
        _list(checks, json_)
        return
    from velollm.doctor.diagnose import diagnose
    from velollm.probe.machine import probe_capture, probe_machine

    facts = probe_capture(capture) if capture else probe_machine()
    findings = diagnose(facts, checks)
    if json_:
        print_json({"facts": facts.model_dump(mode="json"), "findings": [asdict(f) for f in findings]})
    else:
        from velollm.report.doctor import render_diagnosis

        console().print(render_diagnosis(facts, findings))
    if any(finding.severity != "note" for finding in findings):
        raise typer.Exit(EXIT_ADVISED)


def _list(checks: tuple, json_: bool) -> None:  # type: ignore[type-arg]
    if json_:
        rows = [{"name": c.name, "severity": c.severity, "title": c.title, "fixable": c.fixable} for c in checks]
        print_json({"checks": rows})
        return
    from velollm.report.doctor import render_checks

    console().print(render_checks(checks))
