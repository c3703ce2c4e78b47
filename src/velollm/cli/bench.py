"""`velollm bench`: the engine's default settings against the plan's, interleaved."""

from __future__ import annotations

from typing import Annotated

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


def command(
    model: ModelArgument = None,
    backend: BackendOption = "auto",
    profile: ProfileOption = "chat",
    quick: Annotated[bool, typer.Option("--quick", help="Answer within 30 s; fewer rounds, wider intervals.")] = False,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for all rounds.")] = "3m",
    set_: SetOption = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="The server to measure; OpenAI's interface ends in /v1."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure the engine's default settings against the plan's, in turns, on the same prompts.

    A server that VeloLLM cannot start anew (another machine's, a container's, any with --url) is measured as it runs.

    Leaves with 3 where the plan is proved slower.

    Example: velollm bench llama3.2 --quick
    """
    from velollm.autopilot import Order, bench

    order = Order(model, backend, profile, parse_pins(set_), parse_budget_s(budget), quick, url=url)
    with meter() as cockpit:
        course, result = bench(order, cockpit)
    if json_:
        from velollm.report.documents import plan_fields, result_fields

        document = plan_fields(course.facts, course.plan, course.places.label) | result_fields(result)
        print_json({"model": course.model.name, "backend": course.backend.name, **document})
    else:
        from velollm.report.terminal import render_choices, render_comparison

        out = console()
        out.print(f"{course.model.name} on the {course.backend.name} engine, 95% intervals:\n")
        out.print(render_comparison(result))
        if course.plan.choices:
            out.print()
            out.print(render_choices(course.plan))
    ratio = result.ratios.get(course.plan.profile.metric)
    if ratio is not None and ratio.verdict == "slower":
        raise typer.Exit(EXIT_ADVISED)
