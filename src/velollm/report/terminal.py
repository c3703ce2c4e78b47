"""Nouns to what a terminal shows, in 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from velollm.apply import UndoResult
from velollm.bench.result import BenchResult
from velollm.bench.stats import Ratio
from velollm.knobs import Knobs, KnobValue
from velollm.plan import Plan
from velollm.report.bench_text import figure_rows, render_noise
from velollm.units import render_duration

_ARM_TITLES = {"tuned": "plan", "current": "now"}
VERDICT_STYLE = {"faster": "green", "slower": "red", "no difference": "dim"}


def render_comparison(result: BenchResult) -> RenderableType:
    """Arms side by side: each figure with its 95% interval, and the ratio with its verdict (above 1: better).

    Other arms than the plan, and the plan against what is set now, are compared below; one arm alone has no ratio.
    """
    lines: list[RenderableType] = []
    if result.tuned in result.against:
        lines.append(_figures(result, [result.default, result.tuned], result.ratios))
    for arm, ratios in result.against.items():
        if arm in (result.tuned, result.current):
            continue
        lines += [Text(""), Text(f"{arm} against {result.default}:"), Text("")] if lines else []
        lines.append(_figures(result, [result.default, arm], ratios))
    if result.ratios_to_current:
        lines += [Text(""), Text("Against what is set now:"), Text("")]
        lines.append(_figures(result, [result.current, result.tuned], result.ratios_to_current))
    elif result.current in result.against and result.current != result.tuned:
        lines.append(_figures(result, [result.default, result.current], result.against[result.current]))
    lines = lines or [_figures(result, result.arms, {})]
    if noise := render_noise(result):
        lines.append(Text(noise))
    return Group(*lines, *(Text(note, "dim") for note in result.notes))


def _figures(result: BenchResult, shown: Sequence[str], ratios: Mapping[str, Ratio]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for arm in shown:
        table.add_column(_ARM_TITLES.get(arm, arm), justify="right", overflow="fold")
    if ratios:
        table.add_column("ratio", justify="right", overflow="fold")
        table.add_column("verdict")
    for row in figure_rows(result, shown, [ratios] if ratios else []):
        cells: list[str | Text] = [*row.arms]
        for ratio, verdict in row.ratios:
            cells += [ratio, Text(verdict, VERDICT_STYLE[verdict])]
        table.add_row(row.title, *cells)
    return table


def render_choices(plan: Plan) -> RenderableType:
    """Every knob with its value, the engine's default, and one line of reason."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("knob", "value", "default"):
        table.add_column(title, no_wrap=True)
    table.add_column("why")
    for choice in plan.choices:
        default = plan.defaults.get(choice.name)
        style = "" if choice.value == default else "bold"
        table.add_row(
            choice.name,
            Text(render_value(choice.name, choice.value), style),
            render_value(choice.name, default),
            Text(f"{choice.reason} [{choice.basis}]"),
        )
    return table


def render_value(name: str, value: KnobValue) -> str:
    """A knob's value for people."""
    if value is None:
        return "engine's"
    if name.endswith("_s") and isinstance(value, (int, float)):
        return render_duration(float(value))
    return str(value)


def arm_rows(knobs: Mapping[str, Knobs]) -> list[tuple[str, tuple[str, ...]]]:
    """Each knob that an arm ran with, and its value in every arm."""
    names = dict.fromkeys(name for chosen in knobs.values() for name in chosen)
    return [(name, tuple(render_value(name, chosen.get(name)) for chosen in knobs.values())) for name in names]


def render_diff(plan: Plan, label: Callable[[str], str]) -> RenderableType:
    """The changes as a diff, each line with its reason."""
    if not plan.changes:
        return Text("No change: what is set now already is the plan.")
    lines: list[RenderableType] = []
    for kind in dict.fromkeys(change.target for change in plan.changes):
        lines.append(Text(f"{label(kind)}:", "bold"))
        for change in plan.changes:
            if change.target != kind:
                continue
            if change.before is not None:
                lines.append(Text(f"- {change.key}={change.before}", "red"))
            if change.after is not None:
                lines.append(Text(f"+ {change.key}={change.after}", "green"))
            lines.append(Text(f"    {change.reason} [{change.basis}]", "dim"))
    return Group(*lines)


def render_memory(plan: Plan) -> RenderableType | None:
    """Where the model does not fit, or not wholly on the GPU: why, and what would. None where all is well."""
    why = next((choice.reason for choice in plan.choices if choice.name == "context_tokens"), "")
    misfit = plan.placement is None and "does not fit" in why
    if not plan.nearest and not misfit and (plan.placement is None or plan.placement.where != "gpu+cpu"):
        return None
    lines: list[RenderableType] = [Text(f"{why[:1].upper()}{why[1:]}.")]
    if plan.nearest:
        lines.append(Text("What would be wholly on the GPU:" if plan.placement else "What would fit:"))
    elif misfit:
        lines.append(
            Text("No smaller context, cache or quantization of it would: `velollm recommend` names models that do.")
        )
    for item in plan.nearest:
        words = "".join(f" --set {name}={value}" for name, value in item.knobs.items())
        lines.append(Text(f"  {item.text}" + ("" if item.quantization else f":{words}")))
    return Group(*lines)


def render_explanation(facts: Mapping[str, Any]) -> RenderableType:
    """What `velollm explain` shows."""
    lines = [
        Text.from_markup(f"[bold]{escape(facts['knob'])}[/bold] ({escape(facts['unit'])}): {escape(facts['summary'])}"),
        Text(""),
        Text(facts["explain"]),
    ]
    if facts["choices"]:
        lines.append(Text(f"Values: {', '.join(facts['choices'])}."))
    kept = {
        "speed": "It is there for speed: kept only when measured faster.",
        "enables": "It is there for what it enables: kept when wanted and speed is not proved lower.",
    }
    lines.append(Text(kept[facts["purpose"]]))
    if facts["changes_answer"]:
        lines.append(Text("It can change answers, so only your own --set turns it."))
    if facts["rule"]:
        lines += [Text(""), Text(f"Rule {facts['rule']}:", "bold"), *_paragraphs(facts["rule_doc"] or "")]
    return Group(*lines)


def _paragraphs(text: str) -> list[Text]:
    """A docstring with each paragraph on one line, for the terminal to wrap."""
    return [Text(" ".join(part.split())) for part in text.split("\n\n")]


def render_undo(result: UndoResult) -> RenderableType:
    """What `velollm undo` did."""
    if result.flight is None:
        return Text("Nothing to undo.")
    if result.already:
        return Text(f"Flight {result.flight.id} was undone before: nothing to undo.")
    lines = [Text(f"Flight {result.flight.id} ({result.flight.meta.model}) is undone.")]
    if result.conflicts:
        lines = [Text(f"Flight {result.flight.id} ({result.flight.meta.model}) is undone as far as it was ours.")]
    lines += [Text(f"  restored   {label}") for label in result.restored]
    lines += [Text(f"  left alone {conflict.label}: {conflict.reason}") for conflict in result.conflicts]
    lines += [Text(f"  {note}") for note in result.notes]
    return Group(*lines)


def render_knobs(knobs: Knobs) -> RenderableType:
    """Knobs on one line."""
    return Text(", ".join(f"{name}={render_value(name, value)}" for name, value in knobs.items()), "dim")
