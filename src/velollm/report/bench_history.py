"""The history of measurements as text: a list, one result against another, and what a version of the engine changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.bench.apart import Apart
from velollm.bench.history import History, Record
from velollm.bench.samples import metric_of
from velollm.bench.stats import Ratio, summarise
from velollm.bench.trend import Trend, change_of
from velollm.knobs import Knobs
from velollm.report.bench_text import metric_title, render_figure, render_ratio
from velollm.report.terminal import VERDICT_STYLE, arm_rows

_ENGINES = {"ollama": "Ollama", "llamacpp": "llama.cpp", "embedded": "xllamacpp"}
_NOT_IN_TURNS = "The runs did not take turns: what changed meanwhile is in the figures too, and nothing below"


def model_name(name: str) -> str:
    """A model's name, or of a file the last part of its path."""
    return PurePath(name).name if name.endswith(".gguf") else name


def engine_name(backend: str, version: str | None) -> str:
    """An engine with its version, where that is known."""
    name = _ENGINES.get(backend, backend)
    return name if version is None else f"{name} {version}"


def render_list(records: Sequence[Record], history: History) -> RenderableType:
    """One line for each result, newest last."""
    if not records:
        return Text("No results." if history.all else "No results yet: `velollm bench` takes one.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("result", no_wrap=True)
    for title in ("model", "engine", "workload"):
        table.add_column(title, overflow="fold")
    table.add_column("decode tok/s", justify="right")
    for record in records:
        names = ", ".join(model_name(name) for name in record.model.split(", "))
        depth = f", depth {record.depth_tokens:,}" if record.depth_tokens else ""
        marks = "".join(f" ({mark})" for mark in marks_of(record))
        engine = engine_name(record.backend, record.engine_version)
        table.add_row(record.id, names, engine, f"{record.workload}{depth}{marks}", _decode(record))
    lines: list[RenderableType] = [table, Text("`velollm bench --show RESULT` shows one of them whole.", "dim")]
    if history.damaged:
        lines.append(Text(f"{history.damaged} results could not be read.", "dim"))
    return Group(*lines)


def marks_of(record: Record) -> list[str]:
    """What sets a result apart from a whole one of this machine."""
    imported = ["another machine's"] if record.origin == "imported" else []
    return [*imported, *(["incomplete"] if record.incomplete else []), *(["quick"] if record.quick else [])]


def _decode(record: Record) -> str:
    if not record.arms:
        return "unknown"
    estimate = summarise(record.samples, record.arms[0], "decode").estimate
    return "unknown" if estimate is None else f"{estimate:.1f}"


def title_of_record(record: Record) -> str:
    """When, what and with what a result was measured."""
    names = ", ".join(model_name(name) for name in record.model.split(", "))
    depth = f", depth {record.depth_tokens:,}" if record.depth_tokens else ""
    when = record.taken_at.replace("T", " ").replace("+00:00", " UTC")
    marks = "".join(f" ({mark})" for mark in marks_of(record))
    engine = engine_name(record.backend, record.engine_version)
    return f"{record.id}: {names} on {engine}, {record.workload}{depth}, {when}{marks}"


def render_arms(knobs: Mapping[str, Knobs]) -> RenderableType:
    """The knobs that each arm ran with; what differs from the first arm stands out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("knob", no_wrap=True)
    for arm in knobs:
        table.add_column(arm, overflow="fold")
    for name, values in arm_rows(knobs):
        table.add_row(name, *(Text(value, "" if value == values[0] else "bold") for value in values))
    return table


def render_apart(
    found: Sequence[Apart], differences: Sequence[str], disturbances: Sequence[str] = ()
) -> RenderableType:
    """Two results beside each other, with what else differs between them, and what spoiled one of them."""
    lines: list[RenderableType] = []
    if found:
        first = found[0]
        lines += [
            Text(f"before  {title_of_record(first.before.record)}"),
            Text(f"after   {title_of_record(first.after.record)}"),
        ]
    for item in found:
        lines += [Text(""), Text(f"{item.arm}:"), _apart_table(item)]
    if not found:
        lines.append(Text("The two have no figure in common."))
    if any("unlike" in _verdicts(item).values() for item in found):
        lines += [Text(""), Text("unlike: prompts or answers of other lengths, or another clock, so no ratio.", "dim")]
    if floors := [ratio.floor for item in found for ratio in item.ratios.values() if ratio.floor is not None]:
        lines += [Text(""), Text(f"{_NOT_IN_TURNS} {min(floors) - 1:.0%} is called a difference.", "dim")]
    lines += [Text(f"They differ in {text}.", "dim") for text in differences]
    lines += [Text(f"{text[:1].upper()}{text[1:]}", "dim") for text in disturbances]
    return Group(*lines)


def _verdicts(item: Apart) -> dict[str, str]:
    """Each figure's verdict; `unlike` where the two measured it in ways that differ, nothing where one did not."""
    found: dict[str, str] = {}
    for metric, interval in item.before.summary.items():
        both = interval.estimate is not None and item.after.summary[metric].estimate is not None
        ratio = item.ratios.get(metric)
        found[metric] = ratio.verdict if ratio is not None else "unlike" if both else ""
    return found


def _apart_table(item: Apart) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for title in ("before", "after", "ratio"):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("verdict")
    for metric, verdict in _verdicts(item).items():
        title, unit = metric_title(metric)
        cells = [render_figure(side.summary[metric], unit) for side in (item.before, item.after)]
        ratio = item.ratios.get(metric)
        cells.append("" if ratio is None else render_ratio(ratio))
        table.add_row(f"{title} {unit}".strip(), *cells, Text(verdict, VERDICT_STYLE.get(verdict, "")))
    return table


def trend_lines(trends: Sequence[Trend]) -> list[str]:
    """What a version of the engine changed, a sentence each; empty where nothing is proved."""
    found = [trend for trend in trends if trend.changed]
    lines = [line for trend in found for line in _trend(trend)]
    floors = [ratio.floor for trend in found for ratio in trend.changed.values() if ratio.floor is not None]
    return [*lines, f"{_NOT_IN_TURNS} {min(floors) - 1:.0%} is called a change."] if floors else lines


def _trend(trend: Trend) -> Iterator[str]:
    depth = f", depth {trend.depth_tokens:,}" if trend.depth_tokens else ""
    what = f"{model_name(trend.model)}, {trend.workload}{depth}, '{trend.arm}', now {trend.after}"
    for metric, ratio in trend.changed.items():
        yield f"{change_words(metric, ratio)} since {engine_name(trend.backend, trend.before)} ({what})."


def change_words(metric: str, ratio: Ratio) -> str:
    """By how much a figure went up or down: ``prefill fell 18% (13% to 22%)``."""
    estimate, low, high = change_of(ratio, higher_is_better=metric_of(metric).higher_is_better)
    title = metric_title(metric)[0]
    ends = sorted(abs(end) for end in (low, high) if end is not None)
    interval = f" ({ends[0]:.0%} to {ends[1]:.0%})" if len(ends) == 2 else ""
    return f"{title} {'fell' if estimate < 0 else 'rose'} {abs(estimate):.0%}{interval}"
