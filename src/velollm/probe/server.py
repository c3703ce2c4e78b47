"""What an inference server's log tells: its machine as it saw it at the start, and what it really runs with.

Formats: Ollama 0.3 to 0.33 (`routes.go`, `discover/types.go`, `llm/server.go`) and llama.cpp's own lines.
Line numbers in ``source=`` move with every release and are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from velollm.facts import CpuFacts, LogFacts, LogGpu, ServerFacts
from velollm.probe.logline import is_ollama_line, log_lines, parse_fields
from velollm.probe.serverrun import parse_runner

_LISTENING = re.compile(r"Listening on (\S+) \(version ([^)\s]+)\)")
_START = re.compile(r"server config|Listening on \S+ \(version ")
_NO_GPU = re.compile(r"no compatible GPUs were discovered")
_SOC = re.compile(r"\b(?:Orin|Xavier|Thor|Tegra|nvgpu|GB10)\b")
_PART = re.compile(r"\bU?HD Graphics\b|\bIris\b|Radeon(?:\(TM\))? (?:Graphics|\d{3,4}[MS]\b)|Vega \d+ Graphics")
_WINDOWS = re.compile(r"source=\w+_windows\.go|[=\"\s:][A-Za-z]:\\")
_LINUX = re.compile(r"source=\w+_linux\.go|(?:model|cmd|OLLAMA_MODELS)\S{0,2}(?:/home/|/root/|/usr/)")
_MAC = re.compile(r"source=\w+_darwin\.go|library=[Mm]etal|/Applications/Ollama\.app|/opt/homebrew/|=\"?/Users/")


def parse_server_log(text: str) -> LogFacts:
    """The last start that a log of an Ollama server shows. What the log does not say is None.

    ``gpus`` is () only where the server looked and named none. Sizes stay as printed: they are rounded.
    """
    lines = last_start(list(log_lines(text)))
    joined = "\n".join(lines)
    listening = list(_LISTENING.finditer(joined))
    compute = [parse_fields(line) for line in lines if 'msg="inference compute"' in line]
    cards = [fields for fields in compute if fields.get("library", "").lower() != "cpu"]
    hosts = [fields for fields in compute if fields.get("library", "").lower() == "cpu"]
    memory = hosts[-1].get("total") if hosts else None
    total_vram, context = _default_context(lines)
    return LogFacts(
        version=listening[-1].group(2) if listening else None,
        os=_system(joined),
        port=_port(listening[-1].group(1)) if listening else None,
        cpu=_windows_cpu(lines),
        gpus=_gpus(cards, lines) if compute or _NO_GPU.search(joined) else None,
        # Without a GPU older servers put main memory there.
        total_vram=None if hosts and not cards and total_vram == memory else total_vram,
        memory=memory,
        default_num_ctx=context,
    )


def last_start(lines: list[str]) -> list[str]:
    """Lines from the last start on; all of them where no start is shown."""
    begin, listened = 0, True
    for place, line in enumerate(lines):
        if _START.search(line) is None:
            continue
        if "server config" in line:
            begin, listened = place, False
        else:
            begin, listened = (place if listened else begin), True
    # Old releases list their GPUs below the start, never above it.
    return lines[begin:]


def _system(text: str) -> str | None:
    if _WINDOWS.search(text):
        return "windows"
    if _MAC.search(text):
        return "macos"
    return "linux" if _LINUX.search(text) else None


def _port(address: str) -> int | None:
    match = re.search(r":(\d{1,5})$", address)
    return int(match.group(1)) if match else None


def _windows_cpu(lines: Sequence[str]) -> CpuFacts | None:
    """Cores that the Windows build counts: one line for each package, ``cores`` with those of ``efficiency``."""
    packages: dict[str, tuple[int, int, int]] = {}
    for line in lines:
        fields = parse_fields(line) if "gpu_windows.go" in line or "cpu_windows.go" in line else {}
        counts = [fields.get(name, "") for name in ("cores", "efficiency", "threads")]
        if "package" in fields and all(re.fullmatch(r"\d{1,5}", count) for count in counts):
            packages[fields["package"]] = (int(counts[0]), int(counts[1]), int(counts[2]))
    if not packages:
        return None
    cores, efficiency, threads = (sum(values) for values in zip(*packages.values(), strict=True))
    return CpuFacts(
        sockets=len(packages),
        physical_cores=cores,
        performance_cores=cores - efficiency,
        efficiency_cores=efficiency,
        logical_cores=threads,
    )


def _default_context(lines: Sequence[str]) -> tuple[str | None, int | None]:
    total, context = None, None
    for line in lines:
        if "vram-based default context" in line:
            fields = parse_fields(line)
            total = fields.get("total_vram")
            number = fields.get("default_num_ctx", "")
            context = int(number) if re.fullmatch(r"\d{1,9}", number) else None
        elif "entering low vram mode" in line:
            total = parse_fields(line).get("total vram")
    return total, context


def _gpus(cards: list[dict[str, str]], lines: Sequence[str]) -> tuple[LogGpu, ...]:
    overheads = {
        fields["id"]: fields.get("overhead")
        for fields in (parse_fields(line) for line in lines if "detected OS VRAM overhead" in line)
        if "id" in fields
    }
    last = {(fields.get("id", ""), fields.get("library", ""), place): fields for place, fields in enumerate(cards)}
    return tuple(_gpu(fields, overheads.get(key[0])) for key, fields in last.items())


def _gpu(fields: dict[str, str], overhead: str | None) -> LogGpu:
    library = fields.get("library", "").lower() or None
    compute = _said(fields.get("compute"))
    is_gfx = bool(compute and compute.startswith("gfx"))
    # Since 0.12 ``name`` is the engine's device (CUDA0) and ``description`` the product.
    name = _said(fields["description"] if "description" in fields else fields.get("name"))
    return LogGpu(
        name=name,
        library=library,
        compute=None if is_gfx else compute,
        gfx=compute if is_gfx else None,
        driver=_said(fields.get("driver")),
        variant=_said(fields.get("variant")),
        total=_said(fields.get("total")),
        available=_said(fields.get("available")),
        os_overhead=overhead,
        integrated=_integrated(fields.get("type", ""), name, library),
        is_budget_not_memory=True if library == "metal" else None,
    )


def _said(text: str | None) -> str | None:
    """A value of the line; an empty one and the placeholder 0.0 say nothing."""
    return None if text in (None, "", "0.0") else text


def _integrated(kind: str, name: str | None, library: str | None) -> bool | None:
    """The server's own word since 0.12, but Metal called every GPU discrete for a while; else the product's name."""
    if kind.lower() == "igpu" or (name and (_SOC.search(name) or _PART.search(name))):
        return True
    return False if kind == "discrete" and library != "metal" else None


def server_facts(texts: dict[str, str]) -> ServerFacts | None:
    """One running server out of its texts (logs by name); None where they tell of none or of several.

    Several texts are one server where no value of one contradicts another: a service's log and its child's.
    """
    merged: dict[str, object] = {}
    for name in sorted(texts):
        for key, value in _one_server(texts[name]).items():
            if merged.setdefault(key, value) != value:
                return None
    return ServerFacts.model_validate(merged) if merged else None


def _one_server(text: str) -> dict[str, object]:
    lines = last_start(list(log_lines(text)))
    values = parse_runner(lines)
    if any(is_ollama_line(line) for line in lines):
        values["engine"] = "ollama"
        listening = list(_LISTENING.finditer("\n".join(lines)))
        values.pop("version", None)
        if listening:
            values["version"] = listening[-1].group(2)
    elif values:
        values.setdefault("engine", "llama.cpp")
    return values
