"""What an Ollama server's log tells of its work: requests, loads, failures, cut prompts, clients.

Lines: Ollama v0.33.0-rc2 llm/llama_server.go:433 (a child starts), :1362 (it is ready), server/sched.go:641 (a load
failed), and one line of the web framework for each request, written when it ends:
``[GIN] 2026/11/23 - 13:32:10 | 200 |  1.02s |  127.0.0.1 | POST  "/api/generate"``. Its time is cut to the second and
local, as is that of Ollama's own lines.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from velollm.backends.ollama_log import parse_failure, parse_truncations
from velollm.facts import EngineFacts, FailedLoad, OptionReload, ServerActivity
from velollm.probe.logline import log_lines, parse_fields
from velollm.probe.ollama_engine import compare_options, parse_engine, parse_options
from velollm.probe.server import last_start

_REQUEST = re.compile(
    r"\[GIN\] (\d{4})/(\d\d)/(\d\d) - (\d\d):(\d\d):(\d\d) \|\s*(\d{3}) \|\s*([\w.µμ]{1,32})\s*\|\s*(\S{1,64})\s*\|"
    r'\s*(\w{1,10})\s+"([^"]{1,2000})"'
)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,12})?)(h|ms|m|s|µs|μs|us|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "μs": 1e-6, "us": 1e-6, "ns": 1e-9}
_TIME = re.compile(r"\btime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)")
_START = re.compile(r'msg="starting (?:llama-server|llama server|runner)"')
_READY = re.compile(r'msg="(?:llama-server|llama runner) started in ')
_FAILED = re.compile(r'msg="(?:Load failed|NewLlamaServer failed|error loading llama server)"')
_CRASHED = re.compile(
    r'msg="(?:llama-server process no longer running|llama-server terminated|llama runner terminated)"'
)
_ANSWERS = frozenset(
    ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
)
# Shorter ones come about by chance, and cost a client next to nothing.
_OVERLAP_S = 0.5
# A model that nobody asked for as long was gone by itself (the default keep-alive).
_STILL_LOADED_S = 300.0
_Named = TypeVar("_Named", FailedLoad, OptionReload, EngineFacts)
# llama.cpp b10488 ggml/src/ggml-cuda/ggml-cuda.cu:222; "no CUDA-capable device is detected" is no fault of a machine
# without one.
_NO_GPU = re.compile(r"failed to initialize (?:CUDA|ROCm|MUSA): (?!no \S+ device is detected)[\w ,.()-]{1,80}")
_CONTEXT_TIER = re.compile(r'msg="vram-based default context" .*\bdefault_num_ctx=(\d{1,9})\b')


@dataclass(frozen=True)
class LoggedRequest:
    """One request that a log shows. ``ended``: local time, cut to the second."""

    ended: datetime
    status: int
    latency_s: float
    client: str
    method: str
    path: str

    @property
    def is_answer(self) -> bool:
        """Was it answered by a model?"""
        return self.status == 200 and self.method == "POST" and self.path.partition("?")[0] in _ANSWERS


@dataclass
class _Loads:
    """What is remembered from line to line."""

    model: str | None = None
    command: str | None = None
    busy_until: datetime | None = None
    disturbed: bool = False
    begin: int = 0
    pending: bool = False
    changed: bool = False
    loading: bool = False
    models: set[str] = field(default_factory=set)
    failures: dict[str, FailedLoad] = field(default_factory=dict)
    gaps_s: list[float] = field(default_factory=list)
    reloads: list[OptionReload] = field(default_factory=list)
    engine: EngineFacts | None = None
    loads: int = 0
    failed: int = 0


def parse_activity(text: str) -> ServerActivity:
    """What the log of an Ollama server tells of its work since its last start."""
    lines = last_start(list(log_lines(text)))
    requests = [request for line in lines if (request := parse_request(line)) is not None]
    answers = [request for request in requests if request.is_answer]
    overlaps = estimate_overlaps_s(answers)
    cut = parse_truncations("\n".join(line for line in lines if "truncating input prompt" in line))
    seen = _follow_loads(lines)
    compute = [parse_fields(line).get("library", "").lower() for line in lines if 'msg="inference compute"' in line]
    return ServerActivity(
        requests=len(answers),
        overlapping_requests=len(overlaps),
        overlap_s=round(sum(overlaps), 1),
        models=len(seen.models),
        loads=seen.loads,
        failed_loads=seen.failed,
        failures=tuple(seen.failures.values()),
        truncated=len(cut),
        longest_truncated_tokens=max((prompt for _, prompt, _ in cut), default=None),
        smallest_kept_tokens=min((kept for _, _, kept in cut), default=None),
        reload_gaps_s=tuple(seen.gaps_s),
        option_reloads=tuple(seen.reloads),
        engine=seen.engine,
        default_context_tokens=next((int(m.group(1)) for line in lines if (m := _CONTEXT_TIER.search(line))), None),
        compute=tuple(dict.fromkeys(compute)) or None,
        gpu_errors=tuple(dict.fromkeys(m.group().strip() for line in lines if (m := _NO_GPU.search(line)))),
        clients=tuple(dict.fromkeys(r.client for r in requests if r.status < 400 and _is_other(r.client))),
    )


def parse_request(line: str) -> LoggedRequest | None:
    """A request's line; None where it is none, or is damaged."""
    match = _REQUEST.search(line)
    if match is None:
        return None
    latency_s = parse_go_duration_s(match.group(8))
    try:
        year, month, day, hour, minute, second = (int(match.group(i)) for i in range(1, 7))
        ended = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - the log's own local time
    except ValueError:
        return None
    if latency_s is None:
        return None
    return LoggedRequest(ended, int(match.group(7)), latency_s, *match.group(9, 10, 11))


def parse_go_duration_s(text: str) -> float | None:
    """Seconds of a duration as Go prints it (``1m2.5s``, ``345.6µs``); None where it is none."""
    if not text or _DURATION.sub("", text):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def estimate_overlaps_s(requests: Sequence[LoggedRequest]) -> list[float]:
    """For each request that surely began before an earlier-ended one was over: for how long at least, in seconds.

    A line says when a request ended, to the second, and how long it took; so what is counted is less by up to a second
    than what was, except within one second, where the order of the lines tells.
    """
    found = []
    longest_first = list(requests)
    for place, request in enumerate(longest_first):
        shared = 0.0
        for earlier in reversed(longest_first[max(0, place - 64) : place]):
            apart_s = (request.ended - earlier.ended).total_seconds() + 1.0
            shared = max(shared, min(earlier.latency_s, request.latency_s - apart_s))
        if shared >= _OVERLAP_S:
            found.append(shared)
    return found


def _follow_loads(lines: Sequence[str]) -> _Loads:
    state = _Loads()
    for place, line in enumerate(lines):
        if _START.search(line):
            _started(state, line, place)
        elif _READY.search(line):
            _ready(state, line)
        elif _FAILED.search(line):
            _failed(state, line, lines[state.begin : place])
        elif _CRASHED.search(line):
            state.disturbed = True
        elif (request := parse_request(line)) is not None and request.is_answer:
            state.busy_until = request.ended
    if state.loading:
        state.engine = parse_engine(lines[state.begin :], state.model)
    return state


def _started(state: _Loads, line: str, place: int) -> None:
    command = parse_fields(line).get("cmd", "")
    match = re.search(r"--model (\S+)", command)
    if match is None:  # A probe for GPUs starts a child without a model.
        return
    model, bare = match.group(1), re.sub(r"--port \d+", "", command)
    began = parse_line_time(line)
    state.changed = False
    same = model == state.model and bare == state.command and not state.disturbed
    if same and began is not None and state.busy_until is not None:
        gap_s = (began - state.busy_until).total_seconds()
        if gap_s > 0:
            state.gaps_s.append(round(gap_s, 1))
    if model == state.model and bare != state.command and not state.disturbed and state.command is not None:
        _options_changed(state, model, bare, began)
    state.model, state.command, state.disturbed = model, bare, False
    state.busy_until = began
    state.models.add(model)
    state.loads += 1
    state.begin, state.pending, state.loading = place, True, True


def _options_changed(state: _Loads, model: str, command: str, began: datetime | None) -> None:
    """Note a load of a model that was in memory, with other options."""
    idle_s = (began - state.busy_until).total_seconds() if began and state.busy_until else 0.0
    changes = compare_options(parse_options((state.command or "").split()), parse_options(command.split()))
    if changes and idle_s <= _STILL_LOADED_S:
        state.changed = True
        state.reloads.append(OptionReload(model=model, changes=changes))


def _ready(state: _Loads, line: str) -> None:
    took_s = re.search(r" started in (\d{1,6}(?:\.\d{1,6})?) seconds", line)
    if state.pending and state.changed and state.reloads and took_s is not None:
        state.reloads[-1] = state.reloads[-1].model_copy(update={"load_s": float(took_s.group(1))})
    state.pending = False
    state.busy_until = parse_line_time(line) or state.busy_until
    if state.model is not None:
        state.failures.pop(state.model, None)


def _failed(state: _Loads, line: str, child: Iterable[str]) -> None:
    fields = parse_fields(line)
    model = fields.get("model") or state.model
    state.disturbed, state.loading = True, False
    state.failed += 1
    if model is None:
        return
    reason = (parse_failure("\n".join(child)) if state.pending else None) or fields.get("error")
    state.pending = False
    state.failures[model] = FailedLoad(model=model, reason=reason[:300] if reason else None)


def parse_line_time(line: str) -> datetime | None:
    """Local time of one of Ollama's own lines; None where it has none."""
    match = _TIME.search(line)
    try:
        return datetime.fromisoformat(match.group(1)) if match else None
    except ValueError:
        return None


def name_models(activity: ServerActivity, names: Mapping[str, str]) -> ServerActivity:
    """The same with the models' names in place of their files' paths, where they are in ``names``."""

    def named(found: _Named) -> _Named:
        return found.model_copy(update={"model": names.get(found.model or "", found.model)})

    return activity.model_copy(
        update={
            "failures": tuple(named(failure) for failure in activity.failures),
            "option_reloads": tuple(named(reload) for reload in activity.option_reloads),
            "engine": named(activity.engine) if activity.engine else None,
        }
    )


def _is_other(client: str) -> bool:
    try:
        return not ipaddress.ip_address(client.partition("%")[0]).is_loopback
    except ValueError:
        return False
