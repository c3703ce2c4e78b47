"""`velollm bench`: settings, models and servers against each other, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velollm.cli.bench_history import Look, look_back, print_trends, trends_to
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
from velollm.errors import EXIT_ADVISED, UsageError

if TYPE_CHECKING:
    from velollm.autopilot import Series
    from velollm.bench.history import Record
    from velollm.bench.result import BenchResult
    from velollm.bench.trend import Trend

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
    benchstat: Annotated[
        Path | None, typer.Option("--benchstat", metavar="FILE", help="Also write every raw sample for Go's benchstat.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Measure nothing; list the results so far, or those of MODEL.")
    ] = False,
    show: Annotated[
        str | None,
        typer.Option("--show", metavar="RESULT", help="Measure nothing; show a result again (last: newest)."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", metavar="RESULT RESULT", help="Measure nothing; put one result against another."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DATE|TIME|VERSION", help="List results since a date, 7d ago, or 0.32.1."),
    ] = None,
) -> None:
    """Measure settings, models or servers against each other, in turns, on the same prompts.

    A server that VeloLLM cannot start anew (another machine's, a container's, any with --url) is measured as it runs.
    Every result stays in a history, which tells what a new version of the engine changed.

    Leaves with 3 where the plan is proved slower.

    Example: velollm bench llama3.2 --concurrency 1,4 --depth 0,4k
    """
    files = _Files(markdown, csv, benchstat, html)
    files.check()
    names = tuple(models or ())
    look = Look(list_, show, compare, since)
    if look.wanted:
        if html is not None:
            raise UsageError(
                "a page is made when a result is taken", "take --markdown, --csv or --benchstat with --show"
            )
        if (record := look_back(look, names, as_json=json_)) is not None:
            files.write_record(record)
        return
    from velollm.autopilot import Order, Wanted, measure

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
    trends = trends_to(series.records)
    if json_:
        print_json(_document(series, trends))
    else:
        _print(series)
        print_trends(trends)
    files.write(series)
    if series.broken is not None:
        raise series.broken
    metric = series.courses[0].plan.profile.metric
    ratio = series.results[0].ratios.get(metric) if series.results[0].tuned == "tuned" else None
    if ratio is not None and ratio.verdict == "slower":
        raise typer.Exit(EXIT_ADVISED)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _document(series: Series, trends: Sequence[Trend]) -> dict[str, Any]:
    """The first comparison at the top, as ever; all of them under ``results``."""
    from velollm.report.documents import plan_fields, result_fields, trend_fields

    course = series.courses[0]
    return {
        "model": course.model.name,
        "models": [other.model.name for other in series.courses],
        "backend": course.backend.name,
        **plan_fields(course.facts, course.plan, course.places.label),
        **result_fields(series.results[0]),
        "results": [
            {"id": r.id, **result_fields(result)} for r, result in zip(series.records, series.results, strict=True)
        ],
        "trends": [trend_fields(trend) for trend in trends],
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


@dataclass(frozen=True)
class _Files:
    """Where results are written beside the terminal; None: not there."""

    markdown: Path | None
    csv: Path | None
    benchstat: Path | None
    html: Path | None

    def check(self) -> None:
        """Raise `UsageError` where one could not be written."""
        for path in (self.markdown, self.csv, self.benchstat, self.html):
            check_writable(path)

    def write(self, series: Series) -> None:
        self._write_texts(series.records, series.results)
        if self.html is not None:
            _write(self.html, _page(series))

    def write_record(self, record: Record) -> None:
        """The same of a result of the history, which has no plan to draw a page from."""
        from velollm.bench.history import result_of

        self._write_texts([record], [result_of(record)])

    def _write_texts(self, records: Sequence[Record], results: Sequence[BenchResult]) -> None:
        from velollm.report.bench_files import render_csv, render_markdown
        from velollm.report.benchstat import render_benchstat

        if self.markdown is not None:
            _write(self.markdown, render_markdown(results))
        if self.csv is not None:
            _write(self.csv, render_csv(results))
        if self.benchstat is not None:
            _write(self.benchstat, render_benchstat(records))


def _page(series: Series) -> str:
    from datetime import UTC, datetime

    from velollm import __version__
    from velollm.report.html import Subject, render_html

    course = series.courses[0]
    # Of a file no more than its name: the folders above it may name a person.
    plans = {Path(c.model.name).name if c.model.path else c.model.name: c.plan for c in series.courses}
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    arms = [record.knobs for record in series.records]
    return render_html(series.results, Subject(plans, course.backend.name, course.facts, __version__, now, arms))


def _write(path: Path, text: str) -> None:
    write_whole(path, text)
    console(stderr=True).print(f"Wrote {path}", soft_wrap=True)
