"""`velollm tune`: race settings around the plan, and keep what wins."""

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
    console,
    meter,
    parse_budget_s,
    parse_pins,
    print_json,
)
from velollm.errors import EXIT_ADVISED

if TYPE_CHECKING:
    from velollm.autopilot import Tuning

_EXIT_INTERRUPTED = 130


def command(
    model: ModelArgument = None,
    backend: BackendOption = "auto",
    profile: ProfileOption = "chat",
    knobs: Annotated[
        str | None,
        typer.Option("--knobs", metavar="NAME,NAME", help="Race only these knobs; priority and load_mode only so."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for everything.")] = "3m",
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft", metavar="MODEL", help="A model to guess with: name or file; may be given several times."
        ),
    ] = None,
    allow_quality_loss: Annotated[
        bool,
        typer.Option(
            "--allow-quality-loss",
            help="Also try what can change answers (KV types, smaller files of the model), with its price.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished race; a finished one that holds is shown.")
    ] = False,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Race settings on private servers, prove the winner, and remember it.

    Only settings that cannot change answers are raced, unless you allow it. Nothing is applied: `velollm optimize`
    takes over what was found. Ctrl-C keeps what leads so far. Leaves with 3 where changes are advised.

    Example: velollm tune llama3.2 --profile code --budget 5m
    """
    from velollm.autopilot import Order, RaceWish, find_drafts, tune

    order = Order(model, backend, profile, parse_pins(set_), parse_budget_s(budget))
    asked = None if knobs is None else frozenset(name.strip() for name in knobs.split(",") if name.strip())
    with meter() as cockpit:
        drafts: tuple[Path, ...] = find_drafts(draft or ())
        wish = RaceWish(asked, allow_quality_loss, drafts, resume)
        tuning = tune(order, wish, cockpit)
    if json_:
        print_json(_document(tuning))
    else:
        _print(tuning)
    if tuning.race.interrupted:
        raise typer.Exit(_EXIT_INTERRUPTED)
    if tuning.advised:
        raise typer.Exit(EXIT_ADVISED)


def _print(tuning: Tuning) -> None:
    from velollm.report.race_text import render_race, render_values
    from velollm.report.terminal import render_comparison

    out, course = console(), tuning.course
    out.print(f"\n{course.model.name}, profile {course.plan.profile.name}:\n", soft_wrap=True)
    out.print(render_race(tuning.race))
    if tuning.race.noise is not None:
        out.print(f"\nTwo samples of one setting differ by {tuning.race.noise:.1%} here.", style="dim")
    if tuning.short is not None:
        out.print("\nThe winner, confirmed, 95% intervals:\n")
        out.print(render_comparison(tuning.short))
    if tuning.deep is not None:
        out.print(f"\nThe same after {tuning.deep.depth_tokens:,} tokens of conversation:\n")
        out.print(render_comparison(tuning.deep))
    out.print()
    _print_neighbour(tuning)
    out.print(f"Leads: {render_values(tuning.race.changed)}.", soft_wrap=True)
    out.print(f"{tuning.reason[:1].upper()}{tuning.reason[1:]}.", soft_wrap=True)
    name = f" {course.order.model}" if course.order.model else ""
    option = "" if course.plan.profile.name == "chat" else f" --profile {course.plan.profile.name}"
    if tuning.advised:
        out.print(f"To apply it: velollm optimize{name}{option}", soft_wrap=True)
    elif not tuning.race.interrupted:
        out.print("Nothing is to be changed for speed.")


def _print_neighbour(tuning: Tuning) -> None:
    from velollm.knobs import KNOBS
    from velollm.report.price import render_price, render_smaller
    from velollm.report.race_text import render_values

    raced, out = tuning.raced, console()
    if raced is None:
        return
    if raced.price is not None:
        changed = {name: value for name, value in tuning.race.changed.items() if KNOBS[name].changes_answer}
        for line in render_price(render_values(changed), raced.price):
            out.print(line, soft_wrap=True)
    for line in [line for file in raced.smaller for line in render_smaller(file)]:
        out.print(line, soft_wrap=True)
    if raced.busy is not None and raced.busy.estimate is not None:
        out.print(f"With one core busy: {raced.busy.estimate:.2f}x of the default ({raced.busy.verdict}).")
    if (trade := raced.trade) is not None:
        idle = "not measured" if trade.idle is None else f"{trade.idle.estimate:.2f}x"
        out.print(
            f"A trade: {render_values(trade.knobs)} is {trade.busy.estimate:.1f}x as fast with one core busy, and "
            f"alone {idle}. To take it: velollm optimize --set {render_values(trade.knobs)}",
            soft_wrap=True,
        )


def _document(tuning: Tuning) -> dict[str, Any]:
    from velollm.report.documents import plan_fields, result_fields
    from velollm.report.race_text import race_fields

    course, raced = tuning.course, tuning.raced
    trade = raced.trade if raced else None
    return {
        "backend": course.backend.name,
        "model": course.model.name,
        **plan_fields(course.facts, tuning.plan, course.places.label),
        "race": race_fields(tuning.race),
        "raced_on": raced.engine if raced else None,
        "busy": asdict(raced.busy) if raced and raced.busy else None,
        "trade": None if trade is None else {**asdict(trade), "knobs": dict(trade.knobs)},
        "price": asdict(raced.price) if raced and raced.price else None,
        "smaller_files": [asdict(file) for file in raced.smaller] if raced else [],
        "notes": list(raced.notes) if raced else [],
        "confirmed": result_fields(tuning.short) if tuning.short else None,
        "confirmed_deep": result_fields(tuning.deep) if tuning.deep else None,
        "reason": tuning.reason,
        "advised": tuning.advised,
    }
