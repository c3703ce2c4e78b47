"""One look at a server at work, and what two looks in a row tell: slots, speeds, memory by part.

Sources: llama.cpp b10488 tools/server/server-context.cpp:642 (`/slots`), :599 (`prompt eval time` lines),
server-task.cpp:1520 (`/metrics`, counters that rise when an answer ends), and the `buffer size` lines of a load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from velollm.facts import GpuFacts
from velollm.units import MIB

_BUFFER = re.compile(r"\s(\w+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*(\d{1,9}(?:\.\d{1,4})?) MiB")
_LOAD = re.compile(r'msg="starting llama-server" cmd="((?:[^"\\]|\\.)*)"')
_PROMPT = re.compile(r"prompt eval time =\s*(\d+(?:\.\d+)?) ms /\s*(\d+) tokens")
_ANSWER = re.compile(r"(?<!prompt)\s+eval time =\s*(\d+(?:\.\d+)?) ms /\s*(\d+) (?:tokens|runs)")
_PART = {"model": "weights", "KV": "KV cache", "RS": "KV cache", "compute": "compute", "output": "compute"}
_COUNTERS = (
    *("prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_total", "tokens_predicted_seconds_total"),
    *("requests_processing", "requests_deferred"),
)


@dataclass(frozen=True)
class Slot:
    """One slot of an engine: the task that it works on or was last at, and how many tokens of it are answered."""

    number: int
    busy: bool
    task: int | None = None
    context_tokens: int | None = None
    prompt_tokens: int | None = None
    decoded_tokens: int | None = None


@dataclass(frozen=True)
class LogSpeeds:
    """The last answer that a log tells of: the engine's own time until the first token, and the speeds."""

    ttft_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


@dataclass(frozen=True)
class ModelSample:
    """A model in memory. ``slots`` and ``counters`` None: the engine does not tell.

    ``memory`` is in bytes by device and part, ``resident_bytes`` the main memory of the engine's process.
    """

    name: str
    size_bytes: int | None = None
    gpu_bytes: int | None = None
    context_tokens: int | None = None
    slots: tuple[Slot, ...] | None = None
    counters: Mapping[str, float] | None = None
    memory: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    resident_bytes: int | None = None
    log: LogSpeeds | None = None


@dataclass(frozen=True)
class Sample:
    """One look. ``at_s`` is of a clock that only goes forward. ``gpus`` None: nobody can read them here."""

    at_s: float
    reachable: bool
    models: tuple[ModelSample, ...] = ()
    gpus: tuple[GpuFacts, ...] | None = None


@dataclass(frozen=True)
class Speeds:
    """What a model does now, with where each figure is from; None: unknown.

    ``decode_tokens_per_s`` is the sum over all slots.
    """

    decode_tokens_per_s: float | None = None
    decode_from: str = "unknown"
    prefill_tokens_per_s: float | None = None
    prefill_from: str = "unknown"
    ttft_s: float | None = None
    ttft_from: str = "unknown"


def parse_slots(data: object) -> tuple[Slot, ...] | None:
    """Slots of a `/slots` reply; None where it is none."""
    if not isinstance(data, list):
        return None
    return tuple(_slot(entry) for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), int))


def _slot(entry: Mapping[str, Any]) -> Slot:
    following = entry.get("next_token")
    first = following[0] if isinstance(following, list) and following else following
    decoded = first.get("n_decoded") if isinstance(first, dict) else None
    return Slot(
        number=entry["id"],
        busy=entry.get("is_processing") is True,
        task=_count(entry.get("id_task")),
        context_tokens=_count(entry.get("n_ctx")),
        prompt_tokens=_count(entry.get("n_prompt_tokens")),
        decoded_tokens=_count(decoded),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def parse_metrics(text: str) -> dict[str, float] | None:
    """The counters of a `/metrics` reply, without their prefix; None where it has none of them."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        short = name.removeprefix("llamacpp:")
        if short in _COUNTERS and re.fullmatch(r"\d{1,18}(?:\.\d{1,12})?(?:e[+-]\d{1,2})?", value.strip()):
            found[short] = float(value)
    return found or None


def parse_buffers(text: str) -> dict[str, dict[str, dict[str, int]]]:
    """Bytes by model file, device and part, of the last load of each model that a log shows."""
    starts = list(_LOAD.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    found: dict[str, dict[str, dict[str, int]]] = {}
    for match, end in zip(starts, ends, strict=False):
        model = re.search(r"--model (\S+)", match.group(1))
        parts = parse_parts(text[match.end() : end].splitlines())
        if model is not None and parts:
            found[model.group(1)] = parts
    return found


def parse_parts(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Bytes by device and part (weights, KV cache, compute) of the lines of one load."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            device, part = match.group(1), _PART[match.group(2)]
            parts = found.setdefault(device, {})
            parts[part] = parts.get(part, 0) + round(float(match.group(3)) * MIB)
    return found


def parse_log_speeds(text: str) -> LogSpeeds | None:
    """The last answer that a piece of log tells of; None where it tells of none."""
    prompts, answers = _PROMPT.findall(text), _ANSWER.findall(text)
    if not prompts:
        return None
    prompt_s, prompt_tokens = float(prompts[-1][0]) / 1000, int(prompts[-1][1])
    answer_s, tokens = (float(answers[-1][0]) / 1000, int(answers[-1][1])) if answers else (0.0, 0)
    return LogSpeeds(
        ttft_s=prompt_s or None,
        prefill_tokens_per_s=_rate(prompt_tokens, prompt_s),
        decode_tokens_per_s=_rate(tokens, answer_s),
    )


def compare_samples(before: Sample | None, now: Sample) -> dict[str, Speeds]:
    """Speeds of each model, from two looks in a row; those that need two are unknown where there is one only."""
    earlier = {model.name: model for model in before.models} if before else {}
    elapsed_s = now.at_s - before.at_s if before else 0.0
    return {model.name: _speeds(earlier.get(model.name), model, elapsed_s) for model in now.models}


def _speeds(before: ModelSample | None, now: ModelSample, elapsed_s: float) -> Speeds:
    decode, decode_from = _decode(before, now, elapsed_s)
    prefill, prefill_from = _prefill(before, now)
    ttft = now.log.ttft_s if now.log else None
    return Speeds(decode, decode_from, prefill, prefill_from, ttft, "unknown" if ttft is None else "log, last answer")


def _decode(before: ModelSample | None, now: ModelSample, elapsed_s: float) -> tuple[float | None, str]:
    if before is not None and before.slots is not None and now.slots is not None and elapsed_s > 0:
        tokens = decoded_between(before.slots, now.slots)
        if any(slot.busy for slot in now.slots) or tokens:
            return tokens / elapsed_s, "/slots"
    made = _rise(before, now, "tokens_predicted_total")
    spent_s = _rise(before, now, "tokens_predicted_seconds_total")
    if made and spent_s:
        return made / spent_s, "/metrics"
    if now.log is not None and now.log.decode_tokens_per_s is not None:
        return now.log.decode_tokens_per_s, "log, last answer"
    if now.slots is not None and not any(slot.busy for slot in now.slots):
        return 0.0, "/slots"
    return None, "unknown"


def decoded_between(before: Sequence[Slot], now: Sequence[Slot]) -> int:
    """Tokens that all slots have answered between two looks; of a task that ended in between, what was seen of it."""
    earlier = {slot.number: slot for slot in before}
    total = 0
    for slot in now:
        was = earlier.get(slot.number)
        same = was is not None and was.task == slot.task
        start = (was.decoded_tokens or 0) if same and was is not None else 0
        total += max(0, (slot.decoded_tokens or 0) - start)
    return total


def _prefill(before: ModelSample | None, now: ModelSample) -> tuple[float | None, str]:
    tokens, spent_s = _rise(before, now, "prompt_tokens_total"), _rise(before, now, "prompt_seconds_total")
    if tokens and spent_s:
        return tokens / spent_s, "/metrics"
    if now.log is not None and now.log.prefill_tokens_per_s is not None:
        return now.log.prefill_tokens_per_s, "log, last answer"
    return None, "unknown"


def _rise(before: ModelSample | None, now: ModelSample, name: str) -> float | None:
    """How far a counter rose; None where it is not told, or began anew with a reload."""
    if before is None or before.counters is None or now.counters is None:
        return None
    if name not in before.counters or name not in now.counters:
        return None
    rise = now.counters[name] - before.counters[name]
    return rise if rise >= 0 else None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
