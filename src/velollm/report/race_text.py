"""A race as a terminal and as a JSON document show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from velollm.knobs import KnobValue
from velollm.tune.heat import Race, Tried

_STYLES = {"won": "green", "lost": "red", "even": "dim", "out": "yellow", "untried": "dim"}


def render_race(race: Race) -> RenderableType:
    """Everything that was tried, in the order of the race: its ratio to what led then, and how it ended."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("tried", overflow="fold")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("90%", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    for tried in race.tried:
        span = "" if tried.low is None or tried.high is None else f"{tried.low:.2f}-{tried.high:.2f}"
        ratio = "" if tried.ratio is None else f"{tried.ratio:.2f}x"
        table.add_row(Text(tried.name), ratio, span, Text(tried.place, _STYLES[tried.place]), Text(tried.reason))
    return table


def render_values(values: Mapping[str, KnobValue]) -> str:
    """Knobs on one line, as `--set` takes them; one that is left to the engine is not named."""
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None) or "nothing"


def race_fields(race: Race) -> dict[str, Any]:
    """The race as JSON documents have it."""
    return {
        "start": dict(race.start),
        "winner": dict(race.knobs),
        "changed": race.changed,
        "tried": [_tried_fields(tried) for tried in race.tried],
        "groups_done": list(race.done),
        "noise": race.noise,
        "interrupted": race.interrupted,
    }


def _tried_fields(tried: Tried) -> dict[str, Any]:
    return {**asdict(tried), "values": dict(tried.values)}
