"""A memory estimate as a terminal shows it: a row for each part, a column for each device."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.estimate import Answer
from velollm.models.memory import DeviceMemory
from velollm.units import render_bytes

_ROWS = (
    ("weights_bytes", "weights"),
    ("repack_bytes", "weights, repacked"),
    ("kv_bytes", "KV cache"),
    ("recurrent_bytes", "recurrent states"),
    ("compute_bytes", "computing"),
    ("output_bytes", "logits"),
    ("draft_bytes", "draft model"),
    ("picture_bytes", "computing pictures"),
)
_SHOWN = ("context_tokens", "slots", "kv_type_k", "kv_type_v", "batch", "ubatch", "load_mode", "flash_attention")


def render_estimate(answer: Answer) -> RenderableType:
    """The table, what it was worked out for, and what is in no number."""
    devices = answer.estimate.devices
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for device in devices:
        table.add_column(Text(device.device), justify="right", overflow="fold")
    for name, title in _ROWS:
        sizes = [getattr(device, name) for device in devices]
        if any(sizes):
            table.add_row(title, *(render_bytes(size) for size in sizes))
    table.add_row(Text("total", "bold"), *(Text(render_bytes(device.total_bytes), "bold") for device in devices))
    table.add_row("basis", *(_basis(device) for device in devices))
    return Group(Text(f"{answer.model.name} on {answer.backend}: {_settings(answer)}"), table, *_notes(answer))


def _basis(device: DeviceMemory) -> str:
    words = {"engine": "the engine's log", "corrected": "arithmetic, corrected by this engine's last load"}
    return words.get(device.basis, device.basis)


def _settings(answer: Answer) -> str:
    shown = [f"{name} {answer.knobs[name]}" for name in _SHOWN if answer.knobs.get(name) is not None]
    others = [f"{name} {value}" for name, value in answer.knobs.items() if name not in _SHOWN and value is not None]
    return ", ".join(shown + others)


def _notes(answer: Answer) -> list[Text]:
    estimate = answer.estimate
    notes = []
    if answer.source == "server":
        notes.append("Worked out from what the Ollama server shows of the model, whose file cannot be read here.")
    if len(estimate.devices) > 1:
        notes.append(f"{render_bytes(estimate.total_bytes)} over all devices.")
    if any(device.repack_bytes for device in estimate.devices) and answer.knobs.get("load_mode") in ("mmap", "auto"):
        notes.append("The mapped file can be dropped from memory where it is short; load_mode none reads it only once.")
    notes.append(f"Beside it, the server's prompt cache grows up to {render_bytes(estimate.prompt_cache_bytes)}.")
    notes.append(f"Not counted: {', '.join(answer.unknown)}.")
    return [Text(note, "dim") for note in notes]
