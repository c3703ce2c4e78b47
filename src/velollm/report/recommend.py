"""A recommendation as a terminal shows it, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.models.speed import Estimated
from velollm.recommend.choose import Recommendation
from velollm.recommend.finder import Answer
from velollm.recommend.get import Way
from velollm.recommend.options import Option
from velollm.units import render_bytes

_WHERE = {"gpu": "GPU", "cpu": "CPU", "gpu+cpu": "GPU + CPU"}


def render_recommendation(found: Recommendation) -> RenderableType:
    """The options side by side, the best one first, and what the best one's numbers rest on."""
    if found.best is None:
        lines = [f"Nothing suits this machine and the profile {found.profile.name}: {found.why}."]
        lines += [f"  {misfit.name} ({misfit.format}): {misfit.reason}" for misfit in found.left_out]
        return Text("\n".join(lines))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("where", no_wrap=True)
    for title in ("memory", "tokens/s", "TTFT s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("evidence", no_wrap=True)
    for option in (found.best, *found.others):
        table.add_row(*_cells(option), style="bold" if option is found.best else "")
    best = found.best
    lines = [f"{best.name}: {found.why}.", *_grounds(best)]
    lines += [f"Not {misfit.name} ({misfit.format}): {misfit.reason}." for misfit in found.left_out[-3:]]
    return Group(table, Text(""), *(Text(line) for line in lines))


def _cells(option: Option) -> tuple[str, ...]:
    named = option.name.lower().endswith(option.format.lower())
    return (
        option.name if named else f"{option.name} ({option.format})",
        _WHERE[option.placement.where],
        render_bytes(option.memory_bytes),
        _range(option.decode),
        "unknown" if option.ttft is None else f"{option.ttft.value:.2g}",
        option.decode.evidence if option.decode is not None else "-",
    )


def _range(number: Estimated | None) -> str:
    if number is None:
        return "unknown"
    if number.low == number.high:
        return f"{number.value:.3g}"
    return f"{number.value:.3g} ({number.low:.3g}-{number.high:.3g})"


def _grounds(option: Option) -> list[str]:
    size = f"{option.context_tokens} tokens of context" + (f" in {option.slots} slots" if option.slots > 1 else "")
    lines = [f"Memory: {render_bytes(option.memory_bytes)} with {size} [{option.memory_basis}]."]
    if option.decode is not None:
        lines.append(f"Decode, one user: {option.decode.basis} [{option.decode.evidence}].")
    if option.ttft is not None:
        prompt = f"TTFT of a {option.prompt_tokens}-token prompt, {_range(option.ttft)} s"
        lines.append(f"{prompt}: {option.ttft.basis} [{option.ttft.evidence}].")
    return lines


def render_way(way: Way | None) -> str:
    """The command that gets the model."""
    if way is None:
        return "The Ollama library is not known to have it in this format."
    words = {"installed": "It is installed", "pull": "To get it", "quantize": "To make it of the one that is there"}
    notes = [render_bytes(way.needs_bytes)] if way.needs_bytes else []
    # Asked of the library itself only after a yes.
    notes += [f"in the library on {way.listed}"] if way.listed else []
    noted = f" ({', '.join(notes)})" if notes else ""
    return f"{words[way.kind]}{noted}: {way.command}"


def recommendation_fields(answer: Answer) -> dict[str, Any]:
    """The JSON form: every number with its range, evidence and basis."""
    found = answer.recommendation
    return {
        "profile": found.profile.name,
        "decode_floor_tokens_per_s": found.profile.decode_floor_tokens_per_s,
        "machine": {
            "gpus": [gpu.model_dump(mode="json", exclude_none=True) for gpu in answer.facts.gpus or ()],
            "gpu_speed": asdict(answer.speeds.gpu) if answer.speeds.gpu is not None else None,
            "cpu_speed": asdict(answer.speeds.cpu),
            "measured": answer.measured.model_dump() if answer.measured is not None else None,
        },
        "why": found.why,
        "best": None if found.best is None else _option_fields(found.best),
        "others": [_option_fields(option) for option in found.others],
        "left_out": [asdict(misfit) for misfit in found.left_out],
        "get": None if answer.way is None else asdict(answer.way),
    }


def _option_fields(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "format": option.format,
        "parameters": option.model.parameters,
        "file_bytes": option.download_bytes,
        "context_tokens": option.context_tokens,
        "slots": option.slots,
        "where": option.placement.where,
        "placement": asdict(option.placement),
        "memory": {"total_bytes": option.memory_bytes, "evidence": option.memory_basis},
        "decode_tokens_per_s": asdict(option.decode) if option.decode is not None else None,
        "prompt_tokens": option.prompt_tokens,
        "ttft_s": asdict(option.ttft) if option.ttft is not None else None,
    }
