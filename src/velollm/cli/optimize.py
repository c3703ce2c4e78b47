"""`velollm optimize`: plan, private trial, verdict, apply."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velollm.cli.shared import (
    BackendOption,
    JsonOption,
    ModelArgument,
    ProfileOption,
    SetOption,
    ask,
    console,
    is_interactive,
    meter,
    parse_budget_s,
    parse_pins,
    print_json,
)
from velollm.errors import EXIT_ADVISED, UsageError

if TYPE_CHECKING:
    from velollm.autopilot import Order, Outcome


def command(
    model: ModelArgument = None,
    backend: BackendOption = "auto",
    profile: ProfileOption = "chat",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan as a diff with its reasons; touch nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply without asking.")] = False,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for the trial.")] = "3m",
    set_: SetOption = None,
    override: Annotated[bool, typer.Option("--override", help="Also change settings that you made yourself.")] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="Ollama: make NAME-velollm instead of changing NAME.")
    ] = False,
    hardware: Annotated[
        Path | None,
        typer.Option(
            "--hardware",
            metavar="FILE",
            help="Plan for another machine: a capture, or lines such as `16 GB RAM, RTX 4070 12 GB`; --dry-run only.",
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Also write the plan to DIR, as files to take along.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Find better settings, prove them on a private trial server, and apply them after a yes.

    Leaves with 3 where changes are advised and were not applied.

    Example: velollm optimize llama3.2 --profile code
    """
    from velollm.autopilot import Order, export_plan

    if hardware is not None and not dry_run:
        raise UsageError("nothing can be tried on another machine", "--hardware goes with --dry-run")
    order = Order(
        model,
        backend,
        profile,
        parse_pins(set_),
        parse_budget_s(budget),
        override=override,
        beside=beside,
        hardware=hardware,
    )
    outcome = _plan_only(order) if dry_run else _fly(order, yes=yes, quiet=json_)
    files = export_plan(outcome, export) if export and outcome.advised else ()
    if json_:
        print_json(_document(outcome, dry_run=dry_run))
    elif dry_run:
        _print_plan(outcome)
    else:
        _print_ending(outcome)
    for file in files:
        console(stderr=json_).print(f"Wrote {file}", soft_wrap=True)
    if outcome.advised and not outcome.applied:
        raise typer.Exit(EXIT_ADVISED)


def _plan_only(order: Order) -> Outcome:
    from velollm.autopilot import Outcome, chart, chart_elsewhere

    with meter() as cockpit:
        course = chart_elsewhere(order) if order.hardware else chart(order, cockpit, make=False)
    return Outcome(course, course.plan, advised=bool(course.plan.changes))


def _fly(order: Order, *, yes: bool, quiet: bool) -> Outcome:
    from velollm.autopilot import fly

    def confirm(outcome: Outcome) -> bool:
        cockpit.stop()
        if not quiet:
            _print_trial(outcome)
        if yes or quiet or not is_interactive():
            return yes
        return ask(f"Apply {len(outcome.plan.changes)} changes?")

    with meter(assume=True if yes else (False if quiet else None)) as cockpit:
        outcome = fly(order, cockpit, confirm)
    if not quiet and (outcome.trial is None) == outcome.advised:
        _print_trial(outcome)
    return outcome


def _print_trial(outcome: Outcome) -> None:
    from velollm.report.race_text import render_race
    from velollm.report.terminal import render_choices, render_comparison, render_diff, render_memory

    out = console()
    if outcome.race is not None:
        out.print("\nRaced around the plan, each against what led then, 90% intervals:\n")
        out.print(render_race(outcome.race))
    if outcome.trial is not None:
        name = outcome.course.model.name
        name = f"A twin of {name}" if outcome.course.twin else name
        out.print(f"\n{name} on the {outcome.course.backend.name} engine, 95% intervals:\n")
        out.print(render_comparison(outcome.trial))
    out.print("\nThe plan:\n")
    out.print(render_choices(outcome.plan))
    if memory := render_memory(outcome.plan):
        out.print()
        out.print(memory)
    if outcome.advised:
        out.print("\nWhat it changes:\n")
        out.print(render_diff(outcome.plan, outcome.course.places.label))
        _print_steps(outcome)
    out.print()


def _print_steps(outcome: Outcome) -> None:
    """What a yes would run, and what it leaves to a person."""
    from velollm.autopilot import pending_of, planned_steps

    out = console()
    if steps := planned_steps(outcome.course, outcome.plan):
        out.print("\nApplying it runs:\n")
        for line in steps:
            out.print(f"  {line}", soft_wrap=True, markup=False)
    if pending := pending_of(outcome.course, outcome.plan):
        out.print(f"\nLeft to you, because {pending[0].why}:\n", soft_wrap=True)
        for line in dict.fromkeys(item.activate for item in pending):
            out.print(f"  {line}", soft_wrap=True, markup=False)


def _print_plan(outcome: Outcome) -> None:
    from velollm.report.terminal import render_diff, render_memory

    console().print(render_diff(outcome.plan, outcome.course.places.label))
    if memory := render_memory(outcome.plan):
        console().print(memory)
    if outcome.course.order.hardware:
        console().print(f"A plan for the machine of {outcome.course.order.hardware}, not for this one.", soft_wrap=True)
    elif outcome.plan.changes:
        console().print("Nothing was touched. The same command without --dry-run tries this and asks.", soft_wrap=True)


def _print_ending(outcome: Outcome) -> None:
    from velollm.autopilot import restart_notes

    out = console()
    reason = outcome.applied_reason
    out.print(f"{reason[:1].upper()}{reason[1:]}.", soft_wrap=True)
    if outcome.applied and outcome.flight:
        out.print(f"Applied. `velollm undo {outcome.flight}` takes it back, byte for byte.", soft_wrap=True)
        if outcome.restart is not None:
            for note in restart_notes(outcome.restart):
                out.print(f"{note[:1].upper()}{note[1:]}.", soft_wrap=True)
        _print_pending(outcome)
        out.print(outcome.course.places.next_step(), soft_wrap=True)
    elif outcome.pending:
        _print_pending(outcome)
    elif outcome.advised and outcome.trial is not None:
        out.print("To apply it without a question: the same command with --yes.", soft_wrap=True)
    else:
        out.print("Nothing was changed.", soft_wrap=True)
    model = [outcome.course.order.model] if outcome.course.order.model else []
    for candidate in outcome.plan.candidates:
        # Where the plan leaves a knob as it is, another value of it is nothing to suggest.
        if any(outcome.plan.knobs[name] == outcome.plan.defaults.get(name) for name in candidate):
            continue
        words = [*model, *(f"--set {name}={value}" for name, value in candidate.items())]
        out.print(f"Also worth measuring: velollm bench {' '.join(words)}", soft_wrap=True)


def _print_pending(outcome: Outcome) -> None:
    out = console()
    for item in outcome.pending:
        setting = item.key if item.after is None else f"{item.key}={item.after}"
        out.print(f"{setting} is not in effect yet: {item.why}.", soft_wrap=True)
    for commands in dict.fromkeys(item.activate for item in outcome.pending):
        out.print(f"To bring it to effect: {commands}", soft_wrap=True, markup=False)


def _document(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    from velollm.report.documents import plan_fields, result_fields
    from velollm.report.race_text import race_fields

    course = outcome.course
    document = {
        "backend": course.backend.name,
        "model": course.model.name,
        **plan_fields(course.facts, outcome.plan, course.places.label),
    }
    if dry_run:
        return document
    return {
        **document,
        "race": race_fields(outcome.race) if outcome.race else None,
        "trial": result_fields(outcome.trial) if outcome.trial else None,
        "twin": str(course.twin) if course.twin else None,
        "applied": outcome.applied,
        "applied_reason": outcome.applied_reason,
        "pending": [asdict(item) for item in outcome.pending],
        "restart": asdict(outcome.restart) if outcome.restart else None,
        "before": result_fields(outcome.before) if outcome.before else None,
        "confirmed": result_fields(outcome.confirmed) if outcome.confirmed else None,
        "flight": outcome.flight,
    }
