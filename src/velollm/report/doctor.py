"""What the doctor shows on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from velollm.doctor.base import Check, Finding
from velollm.doctor.diagnose import worst_three
from velollm.facts import Facts, GpuFacts, LoadedModelFacts, ServerFacts
from velollm.units import render_bytes

_INDENT = 9
_NARROWEST = 20
_STYLE = {"critical": "bold red", "warning": "yellow", "note": "dim"}


def render_diagnosis(facts: Facts, findings: Sequence[Finding], mendable: Sequence[Finding] = ()) -> RenderableType:
    """The machine in a few lines, then the findings, the three most worth mending first.

    ``mendable`` are those that `velollm doctor --fix` may mend here.
    """
    parts: list[RenderableType] = [_machine(facts), Text("")]
    serious = [finding for finding in findings if finding.severity != "note"]
    notes = [finding for finding in findings if finding.severity == "note"]
    if not serious:
        parts.append(Text("Nothing is wrong or wasteful here.", "green"))
    first = worst_three(findings)
    rest = [finding for finding in serious if finding not in first]
    if first:
        parts += [Text("Most worth mending:", "bold"), *(_finding(f, f in mendable) for f in first)]
    if rest:
        parts += [Text("Also:", "bold"), *(_finding(f, f in mendable) for f in rest)]
    if notes:
        parts += [Text("Notes:", "bold"), *(_finding(f, f in mendable) for f in notes)]
    return Group(*parts)


class _Hanging:
    """A text that begins in the same column on every line, behind ``lead`` on the first."""

    def __init__(self, text: Text, lead: Text | None = None) -> None:
        self._text, self._lead = text, lead or Text(" " * _INDENT)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._text.wrap(console, max(_NARROWEST, options.max_width - _INDENT))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text.assemble(self._lead if number == 0 else " " * _INDENT, line)


def _finding(finding: Finding, mendable: bool) -> RenderableType:
    lead = Text(f"{finding.severity:{_INDENT}}", _STYLE[finding.severity])
    lines = [_Hanging(Text(finding.title), lead)]
    if finding.why:
        lines.append(_Hanging(Text(finding.why)))
    lines += [_Hanging(Text(f"{item.where}: {item.value}", "dim")) for item in finding.evidence]
    if finding.fix:
        lines.append(_Hanging(Text(f"mend: {finding.fix}")))
    if mendable:
        lines.append(_Hanging(Text("or: velollm doctor --fix")))
    return Group(*lines)


def render_mending(
    places: Sequence[str], gone: Sequence[Finding], still: Sequence[Finding], flight: str | None
) -> RenderableType:
    """What `velollm doctor --fix` did: the places that it wrote, and which findings are gone or still there."""
    lines: list[RenderableType] = [Text(""), Text("Mended:", "bold")]
    lines += [_Hanging(Text(place), Text(f"{'wrote':{_INDENT}}")) for place in places]
    lines += [_Hanging(Text(finding.title), Text(f"{'gone':{_INDENT}}", "green")) for finding in gone]
    lines += [_Hanging(Text(finding.title), Text(f"{'still':{_INDENT}}", "yellow")) for finding in still]
    if flight is not None:
        lines.append(Text(f"`velollm undo {flight}` takes it back."))
    return Group(*lines)


def _machine(facts: Facts) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("system", _system(facts))
    table.add_row("processor", _processor(facts))
    table.add_row("memory", _memory(facts))
    table.add_row("GPU", _gpus(facts))
    table.add_row("load", _load(facts))
    if facts.server is not None:
        table.add_row("server", Text(_server(facts.server)))
    return table


def _system(facts: Facts) -> str:
    words = [facts.os or "unknown"]
    if facts.container:
        words.append(f"in a container ({facts.container})")
    if facts.wsl:
        words.append("under WSL")
    if facts.virtual_machine:
        words.append("in a virtual machine")
    return ", ".join(words)


def _processor(facts: Facts) -> str:
    cpu = facts.cpu
    if cpu is None:
        return "unknown"
    names = [cpu.model_name] if isinstance(cpu.model_name, str) else list(cpu.model_name or ("unknown",))
    text = " + ".join(names)
    text += f", {_count(cpu.physical_cores)} cores, {_count(cpu.logical_cores)} threads"
    if cpu.efficiency_cores:
        text += f" ({_count(cpu.performance_cores)} performance, {cpu.efficiency_cores} efficiency)"
    text += f"; usable: {_count(cpu.usable_cores)}"
    wide = [name for name in cpu.isa or () if name in ("avx2", "avx512", "vnni", "amx", "neon", "sve")]
    return text + (f"; {', '.join(wide)}" if wide else "")


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _memory(facts: Facts) -> str:
    memory = facts.memory
    if memory is None:
        return "unknown"
    text = f"{render_bytes(memory.total_bytes)}, available {render_bytes(memory.available_bytes)}"
    if memory.limit_bytes is not None:
        text += f", limit of the control group {render_bytes(memory.limit_bytes)}"
    if memory.swap_total_bytes:
        text += f", swap {render_bytes(memory.swap_total_bytes)}"
    return text


def _gpus(facts: Facts) -> str:
    if facts.gpus is None:
        return "unknown"
    if not facts.gpus:
        return "none"
    return "; ".join(f"{gpu.name or gpu.vendor or 'unknown'} ({_vram(gpu)})" for gpu in facts.gpus)


def _vram(gpu: GpuFacts) -> str:
    if gpu.unified_memory and gpu.vram_bytes is None:
        return "shares the main memory"
    free = f", {render_bytes(gpu.vram_free_bytes)} free" if gpu.vram_free_bytes is not None else ""
    return f"{render_bytes(gpu.vram_bytes)}{free}"


def _load(facts: Facts) -> str:
    load = facts.load
    if load is None:
        return "unknown"
    now = "unknown" if load.busy_cores_now is None else f"{load.busy_cores_now:.1f} cores busy with other work"
    past = "unknown" if load.load_15m is None else f"{load.load_15m:.1f}"
    return f"{now}; 15-minute load {past}"


def _server(server: ServerFacts) -> str:
    words = [f"{server.engine or 'unknown'} {server.version or ''}".rstrip()]
    if server.reachable is False:
        return f"{words[0]}, nothing answers at {server.url}"
    if server.url is not None:
        words.append(f"at {server.url}")
    if server.managed is not None:
        words.append(f"run by {server.unit or server.managed}" if server.managed != "by hand" else "started by hand")
    if server.user is not None:
        words.append(f"as {server.user}")
    text = ", ".join(words)
    if server.loaded is not None:
        text += f"; in memory: {', '.join(_loaded(model) for model in server.loaded) or 'nothing'}"
    for unread in server.unreadable:
        text += f"\n{unread.what} unknown: {unread.why} (would help: {unread.help})"
    return text


def _loaded(model: LoadedModelFacts) -> str:
    text = model.name
    if model.context_tokens is not None:
        slots = f" x {model.slots} slots" if model.slots and model.slots > 1 else ""
        text += f" ({render_bytes(model.size_bytes)}, context {model.context_tokens:,}{slots})"
    return text


def render_checks(checks: Sequence[Check]) -> RenderableType:
    """What `velollm doctor --list` shows."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("check", "worst", "fixable", "looks at"):
        table.add_column(title, no_wrap=title != "looks at")
    for check in checks:
        table.add_row(check.name, check.severity, "yes" if check.fixable else "no", Text(check.title))
    return table
