"""`velollm doctor`: what this machine is, and what is wrong or wasteful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velollm.cli.shared import JsonOption, ask, console, is_interactive, meter, own_identity, print_json
from velollm.errors import EXIT_ADVISED, UsageError, VeloError

if TYPE_CHECKING:
    from velollm.autopilot import Mending
    from velollm.doctor.base import Check, Finding
    from velollm.facts import Facts


def command(
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="NAME", help="Run this check alone; may be given several times."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the checks instead of running them.")] = False,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Mend what may be mended by itself, after a yes; `velollm undo` takes it back."),
    ] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also send your server a prompt above its context; the model may be reloaded."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; the exit code tells.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Also write a report for a bug tracker, without personal data."),
    ] = None,
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
    from velollm.doctor.diagnose import choose_checks, is_serious

    _check_options(list_=list_, fix=fix, probe=probe, quiet=quiet, json_=json_, capture=capture)
    checks = choose_checks(check or [])
    if list_:
        _list(checks, json_)
        return
    facts, findings = _look(checks, capture)
    if probe:
        facts, findings = _probe(facts, checks, yes=yes, silent=json_ or quiet)
    shown = not (quiet or json_)
    if shown:
        _show(facts, findings)
    mending: Mending | None = None
    before = findings
    if fix and (mending := _mend(facts, findings, yes=yes, silent=not shown)) is not None:
        facts, findings = _look(checks, None)
    if shown and mending is not None:
        _show_mending(mending, findings)
    if report is not None:
        _write_report(report, facts, findings)
        if not quiet:
            console(stderr=json_).print(f"Wrote {report}. Read it before you paste it anywhere.", soft_wrap=True)
    if json_:
        print_json(_document(facts, findings, mending, before))
    if is_serious(findings):
        raise typer.Exit(EXIT_ADVISED)


def _check_options(*, list_: bool, fix: bool, probe: bool, quiet: bool, json_: bool, capture: Path | None) -> None:
    """Raises `UsageError` for options that contradict each other."""
    if quiet and (json_ or list_):
        raise UsageError("--quiet prints nothing, so it goes with neither --json nor --list", "leave one of them out")
    if capture is not None and (fix or probe):
        raise UsageError("a captured machine can neither be mended nor asked", "leave --fix and --probe out")
    if list_ and (fix or probe):
        raise UsageError("--list only lists the checks", "leave --fix and --probe out")


def _look(checks: Sequence[Check], capture: Path | None) -> tuple[Facts, list[Finding]]:
    from velollm.bench.past import read_past
    from velollm.config import user_paths
    from velollm.doctor.diagnose import diagnose
    from velollm.probe.machine import probe_capture, probe_machine

    if capture is not None:
        facts = probe_capture(capture)
    else:
        facts = probe_machine().model_copy(update={"past": read_past(user_paths().data)})
    return facts, diagnose(facts, checks)


def _probe(facts: Facts, checks: Sequence[Check], *, yes: bool, silent: bool) -> tuple[Facts, list[Finding]]:
    """The facts with what a prompt above the context showed, where somebody said yes to sending one."""
    from velollm.doctor.diagnose import diagnose
    from velollm.probe.ollama_truncation import choose_probed, probe_server

    chosen = choose_probed(facts)
    question = f"Send {chosen.model} a prompt above its context? {chosen.price}"
    if yes or (not silent and is_interactive() and ask(question)):
        facts = probe_server(facts, chosen)
    elif not silent:
        console(stderr=True).print("Not probed, because nobody said yes (--yes does).", soft_wrap=True)
    return facts, diagnose(facts, checks)


def _mend(facts: Facts, findings: Sequence[Finding], *, yes: bool, silent: bool) -> Mending | None:
    """What was mended; None where nothing may be, or nobody said yes."""
    from velollm.autopilot import choose_mendable, mend, mending_steps
    from velollm.config import user_paths

    chosen = choose_mendable(facts, findings)
    if not chosen:
        if not silent:
            console().print("\nNothing of this may be mended by --fix.", soft_wrap=True)
        return None
    for step in () if silent else mending_steps(facts, chosen):
        console().print(f"It runs: {step}", soft_wrap=True)
    question = f"Mend {len(chosen)} of them? The server is started again where it must be, which cuts running answers."
    if not yes and (silent or not is_interactive() or not ask(question)):
        if not silent:
            console().print("\nNothing was mended, because nobody said yes (--yes does).", soft_wrap=True)
        return None
    with meter(assume=True) as cockpit:
        return mend(facts, chosen, cockpit, user_paths())


def _show(facts: Facts, findings: Sequence[Finding]) -> None:
    from velollm.autopilot import choose_mendable
    from velollm.report.doctor import render_diagnosis

    console().print(render_diagnosis(facts, findings, choose_mendable(facts, findings)))


def _show_mending(mending: Mending, after: Sequence[Finding]) -> None:
    from velollm.doctor.diagnose import compare_findings
    from velollm.report.doctor import render_mending

    gone, still = compare_findings(mending.findings, after)
    console().print(render_mending(mending.places, gone, still, mending.flight), soft_wrap=True)


def _document(
    facts: Facts, findings: Sequence[Finding], mending: Mending | None, before: Sequence[Finding]
) -> dict[str, Any]:
    from velollm.autopilot import choose_mendable
    from velollm.doctor.diagnose import compare_findings

    mendable = choose_mendable(facts, findings)
    rows = [{**asdict(finding), "mendable": finding in mendable} for finding in findings]
    document: dict[str, Any] = {"facts": facts.model_dump(mode="json"), "findings": rows}
    if mending is not None:
        gone, still = compare_findings(mending.findings, findings)
        document["mended"] = {
            "flight": mending.flight,
            "places": list(mending.places),
            "restarted": mending.restarted,
            "before": [asdict(finding) for finding in before],
            "gone": [asdict(finding) for finding in gone],
            "still": [asdict(finding) for finding in still],
        }
    return document


def _write_report(path: Path, facts: Facts, findings: Sequence[Finding]) -> None:
    from velollm import __version__
    from velollm.report.bug import render_bug_report

    text = render_bug_report(facts, findings, __version__, own_identity())
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        why = error.strerror or str(error)
        raise VeloError(f"cannot write {path}: {why}", "give --report a file that you may write") from error


def _list(checks: Sequence[Check], json_: bool) -> None:
    if json_:
        rows = [{"name": c.name, "severity": c.severity, "title": c.title, "fixable": c.fixable} for c in checks]
        print_json({"checks": rows})
        return
    from velollm.report.doctor import render_checks

    console().print(render_checks(checks))
