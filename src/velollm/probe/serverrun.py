"""The model that a server's log loaded last: context, slots, KV cache, layers, threads.

Three generations of Ollama are read, and llama-server by itself: `ollama runner` with flags on its command line
(to 0.11), `ollama runner --ollama-engine` with a ``load request`` line (0.11 to 0.24), and llama-server (from 0.30).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from velollm.probe.logline import parse_fields
from velollm.units import MIB

_CHILD = re.compile(r'msg="starting (?:llama-server|llama server|runner)"')
_GONE = re.compile(r'msg="(?:Load failed|llama-server terminated|llama runner terminated|error loading llama server)"')
_ALONE = re.compile(r"common_params_print_info: build \d+|^(?:main: )?build: \d+ \(|^build_info: ")
_REQUEST = re.compile(r"msg=load request=\"?\{Operation:(commit|alloc) ([^}\"]*)\}")
_REQUEST_FIELD = re.compile(r"(\w+):(\[[^\]]*\]|\S*)")
_KV = re.compile(
    r"llama_kv_cache\w*:\s+size =\s+([\d.]{1,16}) MiB \(.*?\), K \((\w+)\):.*?, V \((\w+)\):|"
    r"KV self size\s+=\s+([\d.]{1,16}) MiB, K \((\w+)\):.*?, V \((\w+)\):"
)
_CONTEXT_BLOCK = "llama_context: constructing llama_context"
_VALUES = {
    "context_tokens": re.compile(r"\bn_ctx_(?:slot|seq|per_seq)\s*= (\d{1,9})\b"),
    "slots": re.compile(r"\b(?:n_slots|n_seq_max)\s*= (\d{1,5})\b"),
    "batch": re.compile(r"(?:llama_context|llama_new_context_with_model|llama_init_from_model): n_batch\s*= (\d{1,9})"),
    "ubatch": re.compile(
        r"(?:llama_context|llama_new_context_with_model|llama_init_from_model): n_ubatch\s*= (\d{1,9})"
    ),
    "threads": re.compile(r"n_threads = (\d{1,5})\b|msg=system .*\bthreads=(\d{1,5})\b"),
}
_OFFLOADED = re.compile(r"offloaded (\d{1,5})/(\d{1,5}) layers to GPU")
_FLASH_WANTED = re.compile(r"\bflash_attn\s*= (auto|enabled|disabled|on|off|0|1|true|false)\b")
_FLASH_DONE = re.compile(r"Flash Attention was auto, set to (enabled|disabled)|: Flash Attention (enabled|disabled)\b")
_DEVICE = re.compile(r"^\s*(?:cmn\s+\S+:)?\s+- (\w+)\s*: .*\(\d+ MiB, \d+ MiB free\)")
_BUILD = re.compile(r"\bbuild:? (\d{1,6}) \(|build_info: (b\d{1,6})")
_FLAGS = {
    "context": ("-c", "--ctx-size"),
    "slots": ("-np", "--parallel"),
    "batch": ("-b", "--batch-size"),
    "ubatch": ("-ub", "--ubatch-size"),
    "threads": ("-t", "--threads"),
    "layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "flash": ("-fa", "--flash-attn"),
    "key": ("-ctk", "--cache-type-k", "--kv-cache-type"),
    "value": ("-ctv", "--cache-type-v", "--kv-cache-type"),
}
_ON_OFF = {"enabled": "on", "true": "on", "1": "on", "disabled": "off", "false": "off", "0": "off"}


def parse_runner(lines: Sequence[str]) -> dict[str, object]:
    """Values of `ServerFacts` that the last load tells; empty where none is shown or the load failed."""
    begin, flags, runner = _last_child(lines)
    if begin is None:
        return {}
    child = list(lines[begin:])
    if any(_GONE.search(line) for line in child):  # What was asked for is not what runs.
        return {}
    values: dict[str, object] = {"runner": runner}
    values |= parse_flags(flags)
    values |= _of_request(child)
    values |= _of_lines(child)
    flash = _flash(child, values.get("flash_attention"))
    if flash is not None:
        values["flash_attention"] = flash
    return {name: value for name, value in values.items() if value is not None}


def _last_child(lines: Sequence[str]) -> tuple[int | None, list[str], str | None]:
    """(line, arguments, kind) of the last model that was started; probes for GPUs start a child without a model."""
    found: tuple[int | None, list[str], str | None] = (None, [], None)
    for place, line in enumerate(lines):
        if _CHILD.search(line):
            words = _words(parse_fields(line).get("cmd", ""))
            if "--model" in words or "-m" in words:
                program = " ".join(words).partition(" -")[0]
                found = (place, words, "llama-server" if "llama-server" in program else "ollama runner")
        elif found[0] is None and (_ALONE.search(line) or line.startswith(("llama_context:", "system_info:"))):
            found = (place, [], "llama-server")
    return found


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, posix="\\" not in command)
    except ValueError:
        return command.split()


def _flag(words: Sequence[str], names: Sequence[str]) -> str | None:
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else words[place + 1] if place + 1 < len(words) else None
    return None


def _count(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else None


def parse_flags(words: Sequence[str]) -> dict[str, object]:
    """Values of `ServerFacts` that the command line of an engine's process gives; None where it gives none."""
    given = {name: _flag(words, names) for name, names in _FLAGS.items()}
    context, slots = _count(given["context"]), _count(given["slots"])
    kv = None
    if given["key"] and given["value"]:
        kv = given["key"] if given["key"] == given["value"] else f"{given['key']}/{given['value']}"
    flash = given["flash"]
    if flash is None and any(word in _FLAGS["flash"] for word in words):
        flash = "on"
    if flash is not None and flash.startswith("-"):
        flash = "on"  # Before 2025 the flag stood alone.
    whole = context if context is None or slots is None or "--kv-unified" in words else context // max(1, slots)
    return {
        "context_tokens": whole,
        "slots": slots,
        "batch": _count(given["batch"]),
        "ubatch": _count(given["ubatch"]),
        "threads": _count(given["threads"]),
        "gpu_layers": _count(given["layers"]),
        "flash_attention": flash,
        "kv_type": kv,
    }


def _of_request(lines: Sequence[str]) -> dict[str, object]:
    """The last allocation that Ollama's own engine was asked for."""
    match = None
    for line in lines:
        match = _REQUEST.search(line) or match
    if match is None:
        return {}
    fields = dict(_REQUEST_FIELD.findall(match.group(2)))
    context, slots = _count(fields.get("KvSize")), _count(fields.get("Parallel"))
    flash = fields.get("FlashAttention", "").lower()
    layers = re.match(r"(\d{1,5})\[", fields.get("GPULayers", "")) if "GPULayers" in fields else None
    values: dict[str, object] = {
        "context_tokens": context // slots if context and slots else context,
        "slots": slots,
        "batch": _count(fields.get("BatchSize")),
        "threads": _count(fields.get("NumThreads")) or None,
        "flash_attention": _ON_OFF.get(flash, flash or None),
        "kv_type": fields.get("KvCacheType") or None,
        "gpu_layers": int(layers.group(1)) if layers else 0 if fields.get("GPULayers") == "[]" else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _of_lines(lines: Sequence[str]) -> dict[str, object]:
    """What llama.cpp itself prints while it loads; of a model and its draft, the model's (it comes first)."""
    values: dict[str, object] = {}
    blocks = 0
    kv_bytes = 0
    for line in lines:
        blocks += _CONTEXT_BLOCK in line
        for name, pattern in _VALUES.items():
            if name not in values and (match := pattern.search(line)):
                values[name] = int(next(group for group in match.groups() if group))
        if "gpu_layers" not in values and (match := _OFFLOADED.search(line)):
            values["gpu_layers"], values["total_layers"] = int(match.group(1)), int(match.group(2))
        if blocks <= 1 and (match := _KV.search(line)):
            size, key, value = (group for group in match.groups() if group)
            kv_bytes += _mebibytes(size)
            values.setdefault("kv_type", key if key == value else f"{key}/{value}")
        if "version" not in values and (match := _BUILD.search(line)):
            number = match.group(1)
            values["version"] = match.group(2) or (f"b{number}" if number and int(number) > 1 else None)
    if kv_bytes:
        values["kv_cache_bytes"] = kv_bytes
    devices = [match.group(1) for line in lines if (match := _DEVICE.match(line))]
    if devices and set(devices) == {"CPU"}:
        values.setdefault("gpu_layers", 0)
    return {name: value for name, value in values.items() if value is not None}


def _mebibytes(text: str) -> int:
    return round(float(text) * MIB) if re.fullmatch(r"\d+(?:\.\d+)?", text) else 0


def _flash(lines: Sequence[str], wanted: object) -> str | None:
    """The setting, and with ``auto`` what it came to (``auto -> enabled``)."""
    for line in lines:
        if (match := _FLASH_WANTED.search(line)) and wanted is None:
            wanted = _ON_OFF.get(match.group(1), match.group(1))
        if (match := _FLASH_DONE.search(line)) and wanted in (None, "auto"):
            done = match.group(1) or match.group(2)
            return f"auto -> {done}" if wanted == "auto" or match.group(1) else None
    return str(wanted) if wanted is not None else None
