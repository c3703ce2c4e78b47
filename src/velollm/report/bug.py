"""A report of the doctor's for a bug tracker: one Markdown page with nothing personal in it.

Two things keep it so. Only fields that are named here are shown at all; and of everything else that is known of the
machine (names of users, models and files, addresses, values of variables) no text may come back by way of a finding:
wherever one of them stands there, it is replaced.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from velollm.doctor.base import Finding
from velollm.facts import Facts, GpuFacts, ServerFacts
from velollm.knobs import KV_TYPES, SPECULATION_KINDS
from velollm.units import render_bytes

# Variables whose values say how an engine is tuned, and nothing else.
SHOWN_VARIABLES = frozenset(
    [
        *(f"OLLAMA_{name}" for name in ("NUM_PARALLEL", "CONTEXT_LENGTH", "KEEP_ALIVE", "MAX_LOADED_MODELS")),
        *(f"OLLAMA_{name}" for name in ("MAX_QUEUE", "FLASH_ATTENTION", "KV_CACHE_TYPE", "SCHED_SPREAD")),
        *(f"OLLAMA_{name}" for name in ("GPU_OVERHEAD", "LOAD_TIMEOUT", "VULKAN", "IGPU_ENABLE", "GO_TEMPLATE")),
        *(f"OLLAMA_{name}" for name in ("DEBUG", "NEW_ENGINE", "MULTIUSER_CACHE", "NOPRUNE", "NO_CLOUD")),
        *(f"LLAMA_ARG_{name}" for name in ("THREADS", "CTX_SIZE", "N_PARALLEL", "BATCH", "UBATCH", "FLASH_ATTN")),
        *(f"LLAMA_ARG_{name}" for name in ("CACHE_TYPE_K", "CACHE_TYPE_V", "CACHE_RAM", "CACHE_REUSE", "LOAD_MODE")),
        *(f"LLAMA_ARG_{name}" for name in ("SPEC_TYPE", "SPEC_DRAFT_N_MAX", "SPEC_DRAFT_N_MIN", "N_GPU_LAYERS")),
        *(f"LLAMA_ARG_{name}" for name in ("N_CPU_MOE", "CPU_MOE", "FIT", "FIT_TARGET", "NUMA", "SPLIT_MODE")),
        *(f"LLAMA_ARG_{name}" for name in ("MAIN_GPU", "REPACK", "KV_UNIFIED", "CTX_CHECKPOINTS", "ENDPOINT_METRICS")),
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
        *("ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION"),
    ]
)
_WORDS = frozenset(
    [
        *KV_TYPES,
        *SPECULATION_KINDS,
        *("true", "false", "on", "off", "auto", "yes", "no", "t", "f", "enabled", "disabled", "unset", "(set)", "info"),
        *("none", "mmap", "mlock", "mmap+mlock", "dio", "layer", "row", "tensor", "distribute", "isolate", "numactl"),
        *("passive", "active", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
        *("ollama", "serve", "root", "localhost", "latest", "llama-server", "ollama.service", "models", "blobs"),
    ]
)
# Texts of facts that a finding may repeat: names of products and kinds, never of people or files.
_OPEN = (
    *("os", "cpu", "container", "power", "libraries", "devices", "environment_names", "model.architecture"),
    *(f"gpus.{name}" for name in ("vendor", "name", "driver_version", "driver_model", "cuda_version", "gfx")),
    *(f"gpus.{name}" for name in ("metal", "compute_capability", "mig_devices", "throttle_reasons")),
    *(f"server.{name}" for name in ("engine", "runner", "version", "flash_attention", "kv_type", "generation")),
    *("server.managed", "server.unit_state", "server.activity.compute", "server.storage.filesystem", "logs", "cgroup"),
    "past",
)
_NUMBER = re.compile(r"[+-]?\d{1,12}(?:\.\d{1,6})?[a-zA-Z%]{0,3}(?:\d{1,2}[ms]|,\d{1,3}){0,16}")
_SAFE_PATH = re.compile(
    r"/(?:proc|sys|dev|api|v1|completion|tokenize|props|slots|metrics)(?:/[\w.*:-]+)*|"
    r"/etc/(?:os-release|systemd/system/ollama\.service(?:\.d/velollm\.conf)?)|/usr/(?:local/)?bin/ollama"
)
_LOOPBACK_URL = re.compile(r"https?://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?(?:/api/\w+|/)?")
_PATTERNS = (
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), "<address>"),
    (re.compile(r"\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b"), "<id>"),
    (re.compile(r"\b(?:[A-Z]{3}-)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<id>"),
    (re.compile(r"\b(?:sha256[:-])?[0-9a-fA-F]{16,}\b"), "<id>"),
    (re.compile(r"\b[A-Za-z]:\\[^\s\"'`;,]*|\\\\[^\s\"'`;,]+"), "<path>"),
)
_URL = re.compile(r"\b\w{2,8}://[^\s\"'`,;)]+")
_PATH = re.compile(r"(?<![\w.<>*/])~?/(?:[^\s\"'`,;:()<>/]+/?)+")
_ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*)(?![\w.]*\w)")


@dataclass(frozen=True)
class Identity:
    """What tells who and where somebody is: the names of the user and the machine, and the home directory."""

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    home: str | None = None


def render_bug_report(facts: Facts, findings: Sequence[Finding], version: str, identity: Identity) -> str:
    """The report, in Markdown."""
    clean = Cleaner(facts, identity)
    parts = [
        "# VeloLLM doctor report",
        "Made to be pasted into a bug report: names, paths, addresses, ids and other people's words are left out.",
        "## Machine",
        _table([("VeloLLM", version), *machine_rows(facts)], clean),
    ]
    if facts.server is not None:
        parts += ["## Server", _table(list(_server(facts.server)), clean)]
    variables = list(_variables(facts))
    if variables:
        parts += ["## Variables", _table(variables, clean)]
    parts += ["## Findings", *(_finding(finding, clean) for finding in findings)]
    if not findings:
        parts.append("None.")
    return "\n\n".join(parts) + "\n"


class Cleaner:
    """Takes out of a text whatever tells of a person, a file, an address or a key."""

    def __init__(self, facts: Facts, identity: Identity) -> None:
        known: dict[str, str] = {}
        for name in identity.users:
            known.setdefault(name, "<user>")
        for name in identity.hosts:
            known.setdefault(name, "<host>")
            known.setdefault(name.partition(".")[0], "<host>")
        if identity.home:
            known.setdefault(identity.home, "<home>")
        for number, model in enumerate(_models(facts), 1):
            known.setdefault(model, f"<model {number}>")
            known.setdefault(model.removesuffix(":latest"), f"<model {number}>")
        for text in _closed_texts(facts):
            known.setdefault(text, "<hidden>")
        # The longest first: a path before the name that is a part of it.
        texts = sorted((t for t in known if not is_harmless(t)), key=lambda text: (-len(text), text))
        self._names = {text.lower(): known[text] for text in texts}
        pattern = "|".join(rf"(?<!\w){re.escape(t)}(?!\w)" if len(t) < 4 else re.escape(t) for t in texts)
        self._known = re.compile(pattern, re.IGNORECASE) if texts else None

    def __call__(self, text: str) -> str:
        """The text without them, on one line, safe inside a Markdown table."""
        text = " ".join(text.split())
        if self._known is not None:
            text = self._known.sub(lambda match: self._names.get(match.group().lower(), "<hidden>"), text)
        text = _URL.sub(lambda match: match.group() if _LOOPBACK_URL.fullmatch(match.group()) else "<address>", text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        text = _ADDRESS.sub(_hide_address, text)
        text = _PATH.sub(lambda match: match.group() if _SAFE_PATH.fullmatch(match.group()) else "<path>", text)
        return text.replace("|", "\\|")


def is_harmless(text: str) -> bool:
    """Can this text be of nobody in particular: a number, a word of the engines', a file of the system?"""
    text = text.strip("\"' ")
    if not text or text.lower() in _WORDS or _NUMBER.fullmatch(text):
        return True
    return bool(
        _SAFE_PATH.fullmatch(text) or _LOOPBACK_URL.fullmatch(text) or re.fullmatch(r"--?[a-z][a-z-]{0,30}", text)
    )


def _hide_address(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return match.group()
    return match.group() if address.is_loopback or address.is_unspecified else "<address>"


def _models(facts: Facts) -> list[str]:
    server = facts.server
    names = [model.name for model in (server.loaded or ())] if server else []
    names += list(server.installed or ()) if server else []
    names += [facts.model.name] if facts.model else []
    return list(dict.fromkeys(names))


def _closed_texts(facts: Facts) -> Iterator[str]:
    """Texts of facts that a report must not repeat, and the parts of them that a finding may show by themselves."""
    closed = facts.model_dump(exclude={"sources", "environment"})
    values = [text for path, text in _walk(closed, "") if not path.startswith(_OPEN)]
    values += [value for name, value in (facts.environment or {}).items() if not _may_show(name, value)]
    yield from (place for place in facts.sources.values() if re.search(r"[/\\]", _SAFE_PATH.sub("", place)))
    for text in values:
        if is_harmless(text):
            continue
        stripped = text.strip("\"' \t\r\n")
        yield from (text, stripped, " ".join(text.split()))
        last = re.split(r"[/\\]", stripped)[-1]
        yield from (last, last.partition(",")[0], stripped.partition(":")[0])


def _walk(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(path without indices, text) of every text inside, keys of mappings of the user's own included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            name = str(key)
            if path.endswith((".environment", ".logged_environment")) or ".configured." in path:
                if not _may_show(name, str(inner)):
                    yield path, str(inner)
                continue
            if path.endswith(".configured"):
                yield path, name
            yield from _walk(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, path)


def _may_show(name: str, value: str) -> bool:
    return name in SHOWN_VARIABLES and is_harmless(value)


def machine_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the machine is, with nothing personal in it: only the fields that are named here."""
    kinds = [facts.os or "unknown", f"container ({facts.container})" if facts.container else ""]
    kinds += ["WSL" if facts.wsl else "", "virtual machine" if facts.virtual_machine else ""]
    yield "system", ", ".join(kind for kind in kinds if kind)
    cpu, memory = facts.cpu, facts.memory
    if cpu is not None:
        name = cpu.model_name if isinstance(cpu.model_name, str) else " + ".join(cpu.model_name or ())
        yield "processor", f"{name or 'unknown'} ({cpu.architecture or 'unknown'})"
        cores = (("physical", cpu.physical_cores), ("logical", cpu.logical_cores), ("usable", cpu.usable_cores))
        yield "cores", ", ".join(f"{_known(count)} {kind}" for kind, count in cores)
        yield "instructions", ", ".join(cpu.isa) if cpu.isa else "unknown"
        yield "governor", cpu.governor or "unknown"
    if memory is not None:
        yield "memory", f"{render_bytes(memory.total_bytes)}, available {render_bytes(memory.available_bytes)}"
        if memory.limit_bytes is not None:
            yield "memory limit", render_bytes(memory.limit_bytes)
    if facts.cgroup is not None and facts.cgroup.cpu_quota is not None:
        yield "CPU quota", f"{facts.cgroup.cpu_quota:g}"
    if facts.load is not None:
        yield "busy with other work", f"{_known(facts.load.busy_cores_now)} cores"
    yield "GPUs", "unknown" if facts.gpus is None else "; ".join(map(_gpu, facts.gpus)) or "none"


def _gpu(gpu: GpuFacts) -> str:
    words = [gpu.name or gpu.vendor or "unknown", render_bytes(gpu.vram_bytes)]
    words += [f"free {render_bytes(gpu.vram_free_bytes)}"] if gpu.vram_free_bytes is not None else []
    words += [f"driver {gpu.driver_version}"] if gpu.driver_version else []
    return ", ".join([*words, *(kind for kind in (gpu.gfx, gpu.compute_capability) if kind)])


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _server(server: ServerFacts) -> Iterator[tuple[str, str]]:
    yield "engine", f"{server.engine or 'unknown'} {server.version or 'of an unknown version'}"
    yield "answers", "unknown" if server.reachable is None else "yes" if server.reachable else "no"
    for title, value in (
        ("runs models with", server.generation or server.runner),
        ("kept running by", server.managed),
        ("context", server.context_tokens),
        ("slots", server.slots),
        ("KV cache", server.kv_type),
        ("flash attention", server.flash_attention),
        ("batch", server.batch),
        ("micro-batch", server.ubatch),
        ("threads", server.threads),
        ("layers on the GPU", server.gpu_layers),
        ("models in memory", None if server.loaded is None else len(server.loaded)),
        ("models installed", None if server.installed is None else len(server.installed)),
    ):
        yield title, "unknown" if value is None else str(value)
    for unread in server.unreadable:
        yield f"{unread.what} unknown", unread.why


def _variables(facts: Facts) -> Iterator[tuple[str, str]]:
    """Variables with a value that says how an engine is tuned; of others no more than that they are set."""
    places: Iterable[tuple[str, Mapping[str, str] | None]] = [("shell", facts.environment)]
    if facts.server is not None:
        places = [*places, ("server", facts.server.environment), ("server's log", facts.server.logged_environment)]
    for place, variables in places:
        for name, value in sorted((variables or {}).items()):
            if name in SHOWN_VARIABLES and value:
                yield f"{name} ({place})", value if is_harmless(value) else "(set)"


def _finding(finding: Finding, clean: Cleaner) -> str:
    lines = [f"- **{finding.severity}** `{finding.check}`: {clean(finding.title)}"]
    lines += [f"  - {clean(item.where)}: {clean(item.value)}" for item in finding.evidence]
    lines.append(f"  - mend: {clean(finding.fix)}")
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, str]], clean: Cleaner) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {clean(name)} | {clean(value)} |" for name, value in rows)])
