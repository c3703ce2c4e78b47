"""A standing, and a look at a server at work, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.facts import Facts, GpuFacts, LoadedModelFacts, ServerFacts
from velollm.status.sample import ModelSample, Sample, Slot, Speeds
from velollm.status.standing import Place, Setting, Standing
from velollm.units import render_bytes

_STYLE = {"runs": "green", "waits": "yellow", "differs": "yellow", "changed": "red", "idle": "dim", "unknown": "dim"}
_FLAGS = (
    ("context_tokens", "context"),
    ("slots", "slots"),
    ("threads", "threads"),
    ("batch", "batch"),
    ("ubatch", "micro-batch"),
    ("kv_type", "KV cache"),
    ("flash_attention", "flash attention"),
    ("gpu_layers", "layers on the GPU"),
)


def render_standing(standing: Standing) -> RenderableType:
    """What VeloLLM has set here, what runs, and where they differ, each with where it was read."""
    parts: list[RenderableType] = [*_set_here(standing), Text(""), Text("What runs:", "bold")]
    parts += [*_running(standing.facts)]
    parts += [Text(""), _conclusion(standing)]
    return Group(*parts)


def _set_here(standing: Standing) -> Iterator[RenderableType]:
    if not standing.flights:
        yield Text("VeloLLM has set nothing here.")
        return
    yield Text("VeloLLM has set:", "bold")
    for place in standing.places:
        yield Text.assemble(
            f"{place.label} (flight {place.flight})",
            ("" if place.state == "as written" else f": {_moved(place)}", "red"),
        )
        for setting in standing.settings:
            if setting.place == place.label:
                yield from _setting(setting)


def _moved(place: Place) -> str:
    return f"{place.state}{f' {place.detail}' if place.detail else ''}"


def _setting(setting: Setting) -> Iterator[Text]:
    value = f"{setting.key}={setting.wanted}" if setting.wanted is not None else f"without {setting.key}"
    yield Text.assemble("  ", (f"{setting.verdict:8}", _STYLE[setting.verdict]), f" {value}")
    if setting.verdict == "changed":
        yield Text(f"           there now: {'nothing' if setting.there is None else setting.there}", "dim")
    if setting.where is not None:
        running = "not set" if setting.running is None else setting.running or "set to nothing"
        yield Text(f"           runs with: {running} ({setting.where})", "dim")
    if setting.detail is not None and setting.verdict != "changed":
        yield Text(f"           {setting.detail}", "dim")


def _running(facts: Facts) -> Iterator[Text]:
    server = facts.server
    if server is None:
        yield Text("No sign of Ollama here.")
        return
    name = f"{server.engine or 'server'} {server.version or ''}".rstrip()
    if not server.reachable:
        yield Text(f"{name}: nothing answers at {server.url}")
        return
    yield Text(f"{name} at {server.url}{_manager(server)}")
    yield from _environment(facts, server)
    yield from _engine(facts, server)
    for model in server.loaded or ():
        yield Text(f"  {_model(model)} ({facts.sources.get('server.loaded', '/api/ps')})")
    if server.loaded == ():
        yield Text("  no model in memory")


def _manager(server: ServerFacts) -> str:
    if server.managed is None:
        return ""
    return f", {'started by hand' if server.managed == 'by hand' else f'run by {server.unit or server.managed}'}"


def _environment(facts: Facts, server: ServerFacts) -> Iterator[Text]:
    """Variables of the process; what only the log tells are all the defaults too, so it is named and not listed."""
    if server.environment is None:
        for unread in server.unreadable:
            if unread.what == "environment":
                yield Text(f"  environment unknown: {unread.why} (would help: {unread.help})", "dim")
        return
    for name, value in sorted(server.environment.items()):
        yield Text(f"  {name}={value} ({facts.sources.get('server.environment', 'process')})")


def _engine(facts: Facts, server: ServerFacts) -> Iterator[Text]:
    by_place: dict[str, list[str]] = {}
    for name, title in _FLAGS:
        value = getattr(server, name)
        if value is not None:
            by_place.setdefault(facts.sources.get(f"server.{name}", "server"), []).append(f"{title} {value}")
    for place, values in by_place.items():
        yield Text(f"  {', '.join(values)} ({place})")


def _model(model: LoadedModelFacts) -> str:
    words = [f"{model.name}: {render_bytes(model.size_bytes)}"]
    words += [f"{render_bytes(model.gpu_bytes)} on the GPU"] if model.gpu_bytes else []
    words += [f"context {model.context_tokens:,}"] if model.context_tokens is not None else []
    words += [f"{model.slots} slots"] if model.slots and model.slots > 1 else []
    return ", ".join(words)


def _conclusion(standing: Standing) -> Text:
    if not standing.flights:
        return Text("Nothing can differ.", "dim")
    if standing.drift:
        return Text("What is set and what runs differ, see above.", "yellow")
    verdicts = {setting.verdict for setting in standing.settings}
    if verdicts <= {"runs"}:
        return Text("Everything that is set runs.", "green")
    return Text("Nothing is known to differ.", "green")


def standing_fields(standing: Standing) -> dict[str, Any]:
    """The document of `velollm status --json`."""
    server = standing.facts.server
    return {
        "drift": standing.drift,
        "flights": [
            {"flight": flight.id, "time": flight.time, "status": flight.status, "summary": flight.meta.summary}
            for flight in standing.flights
        ],
        "places": [asdict(place) for place in standing.places],
        "settings": [asdict(setting) for setting in standing.settings],
        "server": None if server is None else server.model_dump(mode="json", exclude={"activity", "configured"}),
        "sources": {name: place for name, place in standing.facts.sources.items() if name.startswith("server.")},
    }


def render_sample(sample: Sample, speeds: Mapping[str, Speeds], url: str, interval_s: float) -> RenderableType:
    """One look, for a terminal that is drawn again at each."""
    parts: list[RenderableType] = [Text(f"{url}, every {interval_s:g} s; q leaves", "dim")]
    if not sample.reachable:
        parts.append(Text("nothing answers", "red"))
    elif not sample.models:
        parts.append(Text("no model in memory"))
    for model in sample.models:
        parts += [Text(""), *_model_lines(model, speeds.get(model.name, Speeds()))]
    if sample.gpus:
        parts += [Text(""), Text("GPUs (NVML)", "bold"), *(Text(f"  {_gpu(gpu)}") for gpu in sample.gpus)]
    return Group(*parts)


def _gpu(gpu: GpuFacts) -> str:
    used = render_bytes(gpu.vram_used_bytes)
    return f"{gpu.name or gpu.vendor or 'unknown'}: {used} of {render_bytes(gpu.vram_bytes)} used"


def _model_lines(model: ModelSample, speeds: Speeds) -> Iterator[RenderableType]:
    context = "" if model.context_tokens is None else f", context {model.context_tokens:,}"
    yield Text.assemble((model.name, "bold"), f"  {render_bytes(model.size_bytes)}{context}")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for device, parts in model.memory.items():
        told = ", ".join(f"{part} {render_bytes(count)}" for part, count in parts.items())
        table.add_row(f"  {device}", Text(f"{told} (log)"))
    if not model.memory:
        table.add_row("  by part", "unknown: the server's log cannot be read")
    if model.resident_bytes is not None:
        table.add_row("  main memory", f"{render_bytes(model.resident_bytes)} (engine's process)")
    table.add_row("  decode", _speed(speeds.decode_tokens_per_s, speeds.decode_from))
    table.add_row("  prefill", _speed(speeds.prefill_tokens_per_s, speeds.prefill_from))
    table.add_row("  TTFT", _seconds(speeds))
    if model.slots is None:
        table.add_row("  slots", "unknown: the engine cannot be asked")
    for slot in model.slots or ():
        table.add_row(f"  slot {slot.number}", Text(_slot(slot), "bold" if slot.busy else "dim"))
    yield table


def _speed(value: float | None, place: str) -> str:
    return "unknown" if value is None else f"{value:.1f} tok/s ({place})"


def _seconds(speeds: Speeds) -> str:
    if speeds.ttft_s is None:
        return "unknown"
    shown = f"{speeds.ttft_s:.2f} s" if speeds.ttft_s >= 0.1 else f"{1000 * speeds.ttft_s:.1f} ms"
    return f"{shown} ({speeds.ttft_from})"


def _slot(slot: Slot) -> str:
    if not slot.busy:
        return "idle"
    context = "" if slot.context_tokens is None else f" of {slot.context_tokens:,}"
    held = "unknown" if slot.prompt_tokens is None else f"{slot.prompt_tokens:,}"
    return f"busy: {held}{context} tokens held, {slot.decoded_tokens or 0:,} answered"


def render_sample_line(sample: Sample, speeds: Mapping[str, Speeds], clock: str) -> str:
    """One look in one line, for a pipe."""
    if not sample.reachable:
        return f"{clock}  nothing answers"
    words = [_model_words(model, speeds.get(model.name, Speeds())) for model in sample.models]
    words += [f"GPU {_gpu(gpu)}" for gpu in sample.gpus or ()]
    return f"{clock}  {'; '.join(words) or 'no model in memory'}"


def _model_words(model: ModelSample, speeds: Speeds) -> str:
    slots = "slots unknown"
    if model.slots is not None:
        slots = f"{sum(slot.busy for slot in model.slots)}/{len(model.slots)} slots busy"
    decode, prefill = (_speed(v, p) for v, p in _both(speeds))
    memory = render_bytes(model.resident_bytes if model.resident_bytes is not None else model.size_bytes)
    return f"{model.name}: {slots}, decode {decode}, prefill {prefill}, TTFT {_seconds(speeds)}, memory {memory}"


def _both(speeds: Speeds) -> tuple[tuple[float | None, str], tuple[float | None, str]]:
    return (speeds.decode_tokens_per_s, speeds.decode_from), (speeds.prefill_tokens_per_s, speeds.prefill_from)


def sample_fields(sample: Sample, speeds: Mapping[str, Speeds], time: str) -> dict[str, Any]:
    """One look as a document."""
    models = [{**asdict(model), "speeds": asdict(speeds.get(model.name, Speeds()))} for model in sample.models]
    gpus = None if sample.gpus is None else [gpu.model_dump(mode="json") for gpu in sample.gpus]
    return {"time": time, "reachable": sample.reachable, "models": models, "gpus": gpus}
