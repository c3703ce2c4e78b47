"""`velollm bench`: settings, models and servers against each other, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velollm.cli.files import check_writable, write_whole
from velollm.cli.shared import (
    BackendOption,
    JsonOption,
    ProfileOption,
    SetOption,
    console,
    meter,
    parse_budget_s,
    parse_counts,
    parse_pins,
    print_json,
)
from velollm.errors import EXIT_ADVISED

if TYPE_CHECKING:
    from velollm.autopilot import Series

_MOST_USERS = 256
_MOST_TOKENS = 1 << 20
_MOST_ROUNDS = 1000


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Ollama names or paths of GGUF files, compared side by side; without one, Ollama's loaded or newest "
            "model, else one made here.",
        ),
    ] = None,
    backend: BackendOption = "auto",
    profile: ProfileOption = "chat",
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            metavar="default,current,tuned,FILE...",
            help="What to compare: the engine's default, what is set now, the plan, or knobs in a YAML or JSON file. "
            "With several models only the default, unless given.",
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload", metavar="NAME|FILE", help="Kind of prompts, or a file of your own; may be repeated."
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="1,2,4,8", help="How many users ask at the same moment.")
    ] = "1",
    depth: Annotated[
        str, typer.Option("--depth", metavar="0,4k,16k", help="Tokens that are in the context before each prompt.")
    ] = "0",
    rounds: Annotated[
        str, typer.Option("--rounds", metavar="N|auto", help="auto: until the intervals are narrow, or time is over.")
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Answer within 30 s; fewer rounds, wider intervals.")] = False,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for all rounds.")] = "3m",
    set_: SetOption = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="The server to measure; OpenAI's interface ends in /v1."),
    ] = None,
    json_: JsonOption = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the result as Markdown.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write every raw sample as CSV.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write one page with pictures, to read offline."),
    ] = None,
) -> None:
    """Measure settings, models or servers against each other, in turns, on the same prompts.

    A server that VeloLLM cannot start anew (another machine's, a container's, any with --url) is measured as it runs.

    Leaves with 3 where the plan is proved slower.

    Example: velollm bench llama3.2 --concurrency 1,4 --depth 0,4k
    """
    from velollm.autopilot import Order, Wanted, measure

    for path in (markdown, csv, html):
        check_writable(path)
    names = tuple(models or ())
    order = Order(
        names[0] if names else None, backend, profile, parse_pins(set_), parse_budget_s(budget), quick, url=url
    )
    wanted = Wanted(
        models=names,
        arms=_split(arms),
        workloads=tuple(workload or ()),
        levels=parse_counts("--concurrency", concurrency, 1, _MOST_USERS),
        depths=parse_counts("--depth", depth, 0, _MOST_TOKENS),
        rounds=None if rounds == "auto" else parse_counts("--rounds", rounds, 1, _MOST_ROUNDS)[0],
    )
    with meter() as cockpit:
        series = measure(order, wanted, cockpit)
    if json_:
        print_json(_document(series))
    else:
        _print(series)
    _write_files(series, markdown, csv, html)
    if series.broken is not None:
        raise series.broken
    metric = series.courses[0].plan.profile.metric
    ratio = series.results[0].ratios.get(metric) if series.results[0].tuned == "tuned" else None
    if ratio is not None and ratio.verdict == "slower":
        raise typer.Exit(EXIT_ADVISED)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _document(series: Series) -> dict[str, Any]:
    """The first comparison at the top, as ever; all of them under ``results``."""
    from velollm.report.documents import plan_fields, result_fields

    course = series.courses[0]
    return {
        "model": course.model.name,
        "models": [other.model.name for other in series.courses],
        "backend": course.backend.name,
        **plan_fields(course.facts, course.plan, course.places.label),
        **result_fields(series.results[0]),
        "results": [result_fields(result) for result in series.results],
    }


def _print(series: Series) -> None:
    from velollm.report.terminal import render_choices, render_comparison

    out = console()
    course = series.courses[0]
    names = ", ".join(other.model.name for other in series.courses)
    for result in series.results:
        depth = f", depth {result.depth_tokens:,}" if result.depth_tokens else ""
        title = f"{names} on the {course.backend.name} engine, {result.workload}{depth}, medians and 95% intervals:"
        out.print(f"{title}\n", soft_wrap=True)
        out.print(render_comparison(result))
        out.print()
    if len(series.courses) == 1 and course.plan.choices:
        out.print(render_choices(course.plan))


def _write_files(series: Series, markdown: Path | None, csv: Path | None, html: Path | None) -> None:
    from velollm.report.bench_files import render_csv, render_markdown

    if markdown is not None:
        _write(markdown, render_markdown(series.results))
    if csv is not None:
        _write(csv, render_csv(series.results))
    if html is not None:
        _write(html, _page(series))


def _page(series: Series) -> str:
    from datetime import UTC, datetime

    from velollm import __version__
    from velollm.report.html import Subject, render_html

    course = series.courses[0]
    # Of a file no more than its name: the folders above it may name a person.
    plans = {Path(c.model.name).name if c.model.path else c.model.name: c.plan for c in series.courses}
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return render_html(series.results, Subject(plans, course.backend.name, course.facts, __version__, now))


def _write(path: Path, text: str) -> None:
    write_whole(path, text)
    console(stderr=True).print(f"Wrote {path}", soft_wrap=True)
