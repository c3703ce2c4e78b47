"""The journal's flights on a terminal: one line each, or one of them whole."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.journal import Change, Flight
from velollm.report.bench_text import render_interval
from velollm.report.terminal import render_value
from velollm.targets.base import State

_METRICS = {
    "ttft": ("TTFT", "s"),
    "answer_ttft": ("answer TTFT", "s"),
    "prefill": ("prefill", "tok/s"),
    "decode": ("decode", "tok/s"),
    "aggregate_4": ("4 users, total", "tok/s"),
    "worst_ttft_4": ("4 users, worst TTFT", "s"),
}
_MARK_STYLE = {"+": "green", "-": "red", "@": "dim"}


def render_history(flights: Sequence[Flight]) -> RenderableType:
    """One line for each flight."""
    if not flights:
        return Text("No flights yet: `velollm optimize` makes the first.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("flight", "status", "model", "settings"):
        table.add_column(title, no_wrap=title == "flight", overflow="fold")
    for flight in flights:
        table.add_row(flight.id, flight.status, Text(flight.meta.model), Text(flight.meta.summary))
    return Group(table, Text("`velollm history FLIGHT` shows one of them whole.", "dim"))


def render_flight(flight: Flight) -> RenderableType:
    """One flight whole: what it was for, its plan, its verdict, and what it wrote."""
    details = flight.meta.details
    head = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in _head(flight):
        head.add_row(name, Text(value))
    parts: list[RenderableType] = [head]
    if isinstance(plan := details.get("plan"), Sequence) and not isinstance(plan, str):
        parts += [Text("\nThe plan:", "bold"), _plan([row for row in plan if isinstance(row, Mapping)])]
    if isinstance(verdict := details.get("verdict"), Mapping):
        parts += [Text("\nThe verdict:", "bold"), _verdict(verdict)]
    if isinstance(findings := details.get("findings"), Sequence) and not isinstance(findings, str):
        parts += [Text("\nWhat it was to mend:", "bold"), *(Text(f"  {finding}") for finding in findings)]
    parts += [Text("\nWhat was written:", "bold"), *(line for change in flight.changes for line in _change(change))]
    return Group(*parts)


def _head(flight: Flight) -> Iterator[tuple[str, str]]:
    meta = flight.meta
    yield "flight", flight.id
    yield "time", flight.time
    yield "status", flight.status
    yield "version", meta.version
    yield "backend", meta.backend
    yield "model", meta.model
    yield "settings", meta.summary
    for name in ("profile", "reason"):
        if name in meta.details:
            yield name, str(meta.details[name])
    if flight.failed is not None:
        yield "put back", flight.failed
    if flight.damage is not None:
        yield "damage", flight.damage


def _plan(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("knob", "value", "default", "why"):
        table.add_column(title, no_wrap=title != "why")
    for row in rows:
        name, value, default = str(row.get("knob")), row.get("value"), row.get("default")
        shown = Text(render_value(name, value), "" if value == default else "bold")
        why = Text(f"{row.get('reason', '')} [{row.get('basis', '')}]")
        table.add_row(name, shown, render_value(name, default), why)
    return table


def _verdict(verdict: Mapping[str, Any]) -> RenderableType:
    arms = {name: _mapping(figures) for name, figures in _mapping(verdict.get("arms")).items()}
    ratios = _mapping(verdict.get("ratio"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in [*arms, "ratio"]:
        table.add_column("plan" if name == "tuned" else name, justify="right", overflow="fold")
    table.add_column("verdict")
    for metric, (title, unit) in _METRICS.items():
        ratio = _mapping(ratios.get(metric))
        cells = [_interval(_mapping(figures.get(metric)), unit) for figures in arms.values()]
        if any(cells):
            decides = " *" if metric == verdict.get("metric") else ""
            table.add_row(f"{title} {unit}{decides}", *cells, _interval(ratio, ""), str(ratio.get("verdict", "")))
    told = f"* decides. Workload {verdict.get('workload')}, {verdict.get('rounds')} rounds, 95% intervals."
    return Group(table, Text(told, "dim"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _interval(figure: Mapping[str, Any], unit: str) -> str:
    """An interval of the journal; empty where there was no such figure."""
    estimate, low, high = (_number(figure.get(name)) for name in ("estimate", "low", "high"))
    return "" if estimate is None else render_interval(estimate, low, high, 2 if unit in ("s", "") else None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _change(change: Change) -> Iterator[Text]:
    """One place, as a diff of what was there and what was written."""
    fate = "undone" if change.undone else change.conflict or ("" if change.done else "not written")
    yield Text(f"{change.label}{f' ({fate})' if fate else ''}:")
    before, after = _lines(change.before), _lines(change.after)
    if before == after:
        yield Text("  only its mode or owner", "dim")
    for line in difflib.ndiff(before, after):
        if line[0] in "+-":
            yield Text(f"  {line[0]} {line[2:]}", _MARK_STYLE[line[0]])


def _lines(state: State) -> list[str]:
    """A state in lines: text as it is, JSON one value a line, and of anything else its size."""
    if state.content is None:
        return []
    try:
        text = state.content.decode("utf-8")
    except UnicodeDecodeError:
        return [f"{len(state.content)} bytes that are no text"]
    try:
        data = json.loads(text)
    except ValueError:
        return text.splitlines()
    return list(_values(data)) if isinstance(data, dict) else text.splitlines()


def _values(data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        if name == "parameters" and isinstance(value, list):
            yield from (f"PARAMETER {' '.join(map(str, pair))}" for pair in value)
        elif isinstance(value, str):
            yield f"{name} {value[:12]}" if name in ("original", "base", "digest") else f"{name} {value}"
        else:
            yield f"{name} {json.dumps(value)}"
