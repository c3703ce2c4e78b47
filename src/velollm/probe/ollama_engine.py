"""What the engine's lines in a server's log tell of the newest load, and what made a model load again.

Lines: llama.cpp b10488 src/llama-model.cpp (`load_tensors`), src/llama-kv-cache.cpp, src/llama-context.cpp
(`sched_reserve`), tools/server/server-context.cpp:599-603 (times of an answer) and `load_model` (limit of the prompt
cache), tools/server/server-task.cpp (`cache state`); common/common.cpp (`device_info`, `system_info`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from velollm.facts import EngineFacts
from velollm.probe.ollama_guessing import parse_guessing
from velollm.units import MIB

_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?)"
_WEIGHTS = re.compile(rf"load_tensors:\s+(\S{{1,32}}) model buffer size =\s+{_NUMBER} MiB")
_WORK = re.compile(rf"(?:llama_kv_cache\w*|sched_reserve|llama_context):\s+(\S{{1,32}}) +(?:KV|compute|output) buffer size =\s+{_NUMBER} MiB")  # fmt: skip  # noqa: E501
_DEVICE = re.compile(r"^\s*(?:cmn\s+\S+:)?\s+- (\w{1,32})\s*: .{1,200}\((\d{1,9}) MiB, (\d{1,9}) MiB free\)\s*$")
_STARTED = re.compile(rf'msg="(?:llama-server|llama runner) started in {_NUMBER} seconds')
_CACHE_LIMIT = re.compile(r"prompt cache is enabled, size limit: (\d{1,9}) MiB")
_CACHE_OPEN = re.compile(r"prompt cache is enabled, size limit: no limit")
_CACHE_OFF = re.compile(r"prompt cache is disabled")
_CACHE_STATE = re.compile(rf"cache state: \d{{1,9}} prompts, {_NUMBER} MiB")
_ANSWER = re.compile(rf"(?<!prompt) eval time =\s+{_NUMBER} ms /\s+(\d{{1,9}}) tokens")
_CONTEXT = "llama_context: constructing llama_context"
_OPENMP = re.compile(r"system_info: .*?\bOPENMP = ([01])")
_SYSTEM = "system_info: n_threads"
# Shorter answers are timed too roughly, and the first token of each is none of decode.
_TIMED_TOKENS = 16
# What says nothing of a client's options: addresses, and what follows from the model.
_NOT_OPTIONS = frozenset({"model", "port", "host", "chat-template", "log-verbosity"})


def parse_engine(lines: Sequence[str], model: str | None = None) -> EngineFacts | None:
    """What the lines from one start of an engine on tell; None where it did not load."""
    started = next((match for line in lines if (match := _STARTED.search(line))), None)
    weights, drafts = _weights(lines)
    if started is None and not weights:
        return None
    rates = [rate for line in lines if (rate := parse_decode_rate(line)) is not None]
    limit, used = _prompt_cache(lines)
    on_gpu = sum(size for name, size in weights if _is_gpu(name))
    work = [(match.group(1), _bytes(match.group(2))) for line in lines if (match := _WORK.search(line))]
    return EngineFacts(
        model=model,
        load_s=float(started.group(1)) if started else None,
        mapped_bytes=sum(size for name, size in weights if name.endswith("_Mapped") and not _is_gpu(name)),
        repacked_bytes=sum(size for name, size in weights if name.endswith("_REPACK")),
        plain_bytes=sum(
            size for name, size in weights if not _is_gpu(name) and not name.endswith(("_Mapped", "_REPACK"))
        ),
        gpu_weights_bytes=on_gpu,
        gpu_used_bytes=on_gpu + sum(size for name, size in (*drafts, *work) if _is_gpu(name)),
        gpu_free_bytes=_gpu_free(lines),
        prompt_cache_limit_bytes=limit,
        prompt_cache_bytes=used,
        best_decode_tokens_per_s=round(max(rates), 2) if rates else None,
        timed_answers=len(rates),
        openmp=_openmp(lines),
        draft_weights_bytes=sum(size for name, size in drafts if not name.endswith("_REPACK")),
        guessing=parse_guessing(lines),
    )


def parse_decode_rate(line: str) -> float | None:
    """Tokens per second of one answer's line; None where it is none, or the answer too short to tell."""
    match = _ANSWER.search(line)
    if match is None or int(match.group(2)) < _TIMED_TOKENS or float(match.group(1)) <= 0:
        return None
    # The engine counts the first token, whose time is the prompt's.
    return (int(match.group(2)) - 1) / (float(match.group(1)) / 1000.0)


def parse_options(words: Iterable[str]) -> dict[str, str]:
    """Flags of an engine's command line by name without dashes; a flag that stands alone has an empty value."""
    found: dict[str, str] = {}
    name = ""
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            found[name] = value if equals else ""
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def compare_options(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What differs between two command lines of the same model, by flag: (before, now)."""
    names = sorted((before.keys() | now.keys()) - _NOT_OPTIONS)
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _weights(lines: Sequence[str]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Buffers of weights by device: of the model, and of a draft, which is loaded after the model's context."""
    own: list[tuple[str, int]] = []
    drafts: list[tuple[str, int]] = []
    current = own
    for line in lines:
        if _CONTEXT in line:
            current = drafts
        elif match := _WEIGHTS.search(line):
            current.append((match.group(1), _bytes(match.group(2))))
    return own, drafts


def _is_gpu(name: str) -> bool:
    """Is a buffer of this name on a GPU? The processor's are CPU…, AMX and those that devices read in place."""
    return not (name.startswith(("CPU", "AMX", "BLAS")) or name.endswith("_Host"))


def _gpu_free(lines: Sequence[str]) -> int | None:
    free = {
        match.group(1): int(match.group(3)) * MIB
        for line in lines
        if (match := _DEVICE.match(line)) and _is_gpu(match.group(1))
    }
    return sum(free.values()) if free else None


def _prompt_cache(lines: Sequence[str]) -> tuple[int | None, int | None]:
    """Limit of the prompt cache (0: there is none, -1: without a limit), and the most that it held so far, in bytes."""
    limit, used = None, None
    for line in lines:
        if match := _CACHE_LIMIT.search(line):
            limit = int(match.group(1)) * MIB
        elif _CACHE_OPEN.search(line):
            limit = -1
        elif _CACHE_OFF.search(line):
            limit = 0
        elif match := _CACHE_STATE.search(line):
            used = max(used or 0, _bytes(match.group(1)))
    return limit, used


def _openmp(lines: Sequence[str]) -> bool | None:
    """The engine names OpenMP only where it was built with it."""
    for line in lines:
        if _SYSTEM in line:
            match = _OPENMP.search(line)
            return match is not None and match.group(1) == "1"
    return None


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * MIB)
