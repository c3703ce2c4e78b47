from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.probe.ollama_activity import (
    LoggedRequest,
    estimate_overlaps_s,
    parse_activity,
    parse_go_duration_s,
    parse_line_time,
    parse_request,
)

BLOB = "/models/blobs/sha256-" + "a" * 64
OTHER = "/models/blobs/sha256-" + "b" * 64
NOON = datetime(2026, 1, 2, 12, 0, 0)  # noqa: DTZ001 - logs are in local time


def start(at: str, model: str = BLOB, context: int = 4096, port: int = 4000) -> str:
    command = f"/usr/lib/ollama/llama-server --model {model} --port {port} -c {context} -np 1"
    return f'time=2026-01-02T{at}.100+02:00 level=INFO source=x.go:1 msg="starting llama-server" cmd="{command}"'


def ready(at: str) -> str:
    return f'time=2026-01-02T{at}.900+02:00 level=INFO source=x.go:1 msg="llama-server started in 0.80 seconds"'


def answered(at: str, latency: str, path: str = "/api/generate", status: int = 200, client: str = "127.0.0.1") -> str:
    return f'[GIN] 2026/01/02 - {at} | {status} | {latency:>12} | {client:>15} | POST     "{path}"'


def failed(at: str, model: str = BLOB) -> str:
    why = "llama-server process has terminated: exit status 1"
    return f'time=2026-01-02T{at}.100+02:00 level=INFO source=sched.go:1 msg="Load failed" model={model} error="{why}"'


def log(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def test_a_line_of_a_request() -> None:
    request = parse_request(answered("12:00:07", "1m2.5s", client="192.168.1.9"))
    assert request is not None
    assert request == LoggedRequest(NOON + timedelta(seconds=7), 200, 62.5, "192.168.1.9", "POST", "/api/generate")
    assert request.is_answer
    assert parse_request('[GIN] 2026/13/02 - 12:00:07 | 200 | 1s | 127.0.0.1 | POST "/"') is None
    assert parse_request("[GIN-debug] POST /api/generate --> handler") is None


@pytest.mark.parametrize(
    ("path", "status", "counts"),
    [
        ("/api/chat", 200, True),
        ("/v1/messages?beta=1", 200, True),
        ("/api/chat", 503, False),
        ("/api/tags", 200, False),
    ],
)
def test_only_answers_of_models_count(path: str, status: int, counts: bool) -> None:
    assert parse_activity(answered("12:00:00", "1s", path, status)).requests == int(counts)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("345.6µs", 345.6e-6), ("1.5ms", 0.0015), ("2h3m4s", 7384.0), ("0s", 0.0), ("", None), ("4", None), ("1s!", None)],
)
def test_durations_as_go_prints_them(text: str, seconds: float | None) -> None:
    assert parse_go_duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_two_at_once_overlap_and_one_after_the_other_does_not() -> None:
    together = log(answered("12:00:10", "10s"), answered("12:00:18", "18s"))
    seen = parse_activity(together)
    assert (seen.requests, seen.overlapping_requests) == (2, 1)
    assert seen.overlap_s == pytest.approx(9.0)  # 10 s in truth: the second that the log leaves open is not counted.
    assert parse_activity(log(answered("12:00:10", "10s"), answered("12:00:18", "8s"))).overlapping_requests == 0


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0.001, 30)), min_size=1, max_size=12))
def test_an_overlap_that_is_told_is_one_that_was(spans: list[tuple[float, float]]) -> None:
    """Against exact times: what is told after cutting them to seconds is never more than what was."""
    exact = sorted((begin + length, length) for begin, length in spans)
    lines = [
        LoggedRequest(NOON + timedelta(seconds=int(e)), 200, length, "::1", "POST", "/api/chat") for e, length in exact
    ]
    truth = 0.0
    for place, (end, length) in enumerate(exact):
        truth += max(
            (min(before[1], before[0] - (end - length)) for before in exact[:place] if before[0] > end - length),
            default=0.0,
        )
    assert sum(estimate_overlaps_s(lines)) <= truth + 1e-6


def test_a_model_that_is_loaded_again_after_a_pause() -> None:
    text = log(
        start("12:00:00"), ready("12:00:01"), answered("12:00:05", "4s"),
        start("12:10:05", port=4001), ready("12:10:06"), answered("12:10:08", "2s"),
        start("12:10:20", context=8192), ready("12:10:21"),  # changed settings, no pause
        start("12:30:00", OTHER), ready("12:30:01"),  # another model
    )  # fmt: skip
    seen = parse_activity(text)
    assert seen.reload_gaps_s == (600.1,)
    assert (seen.loads, seen.models, seen.failed_loads) == (4, 2, 0)


def test_a_load_after_a_crash_is_no_pause() -> None:
    crash = (
        'time=2026-01-02T12:05:00.000+02:00 level=WARN source=x.go:1 msg="llama-server process no longer running" sys=9'
    )
    text = log(start("12:00:00"), ready("12:00:01"), answered("12:00:05", "4s"), crash, start("12:10:00"))
    assert parse_activity(text).reload_gaps_s == ()


def test_a_failure_that_was_mended_is_forgotten() -> None:
    reason = 'error while handling environment variable "LLAMA_ARG_THREADS": stoi'
    broken = log(start("12:00:00"), reason, failed("12:00:01"))
    seen = parse_activity(broken)
    assert [(f.model, f.reason) for f in seen.failures] == [(BLOB, reason)]
    mended = parse_activity(broken + log(start("12:01:00"), ready("12:01:01")))
    assert (mended.failures, mended.failed_loads, mended.loads) == ((), 1, 2)


def test_only_the_last_start_counts() -> None:
    config = 'time=2026-01-02T13:00:00.000+02:00 level=INFO source=routes.go:1 msg="server config" env="map[A:1]"'
    counts = "limit=1026 prompt=9001 keep=4 new=1026"
    cut = f'time=2026-01-02T12:00:00.000+02:00 level=WARN source=x.go:1 msg="truncating input prompt" {counts}'
    assert parse_activity(log(cut)).truncated == 1
    seen = parse_activity(log(cut, failed("12:00:01"), config))
    assert (seen.truncated, seen.failures) == (0, ())


def test_clients_that_were_answered() -> None:
    text = log(
        answered("12:00:00", "1s", client="127.0.0.1"), answered("12:00:01", "1s", client="192.168.1.9"),
        answered("12:00:02", "1s", client="::1"), answered("12:00:03", "1s", client="10.0.0.3", status=403),
    )  # fmt: skip
    assert parse_activity(text).clients == ("192.168.1.9",)


@given(st.text(max_size=300))
def test_no_text_breaks_it(text: str) -> None:
    parse_activity(text + "\n" + start("12:00:00") + "\n" + text + failed("12:00:01"))
    parse_request("[GIN] " + text)
    parse_go_duration_s(text)
    parse_line_time("time=" + text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("env-bad-value", "LLAMA_ARG_THREADS"),
        ("env-removed-name", "LLAMA_ARG_DRAFT_MAX"),
        ("kv-quantized-without-flash", "quantized V cache"),
        ("kv-type-unknown", "cache type"),
        ("spec-mtp-without-heads", "context type MTP"),
    ],
)
def test_recorded_failures_and_their_reasons(name: str, words: str) -> None:
    text = (shared_dir("ollama") / "0.33.0-rc2" / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    seen = parse_activity(text)
    assert (seen.loads, seen.failed_loads, seen.compute) == (1, 1, ("cpu",))
    assert [failure.model.rpartition("/")[2][:7] for failure in seen.failures] == ["sha256-"]
    assert words in (seen.failures[0].reason or "")


def test_a_recorded_log_of_reloads() -> None:
    text = (shared_dir("ollama") / "0.33.0-rc2" / "logs" / "start-load-reload.log").read_text(encoding="utf-8")
    seen = parse_activity(text)
    assert seen.loads >= 2
    assert seen.failed_loads == 0
    assert seen.clients == ()


def test_a_recorded_log_of_a_killed_child() -> None:
    text = (shared_dir("ollama") / "0.33.0-rc2" / "logs" / "child.log").read_text(encoding="utf-8", errors="replace")
    seen = parse_activity(text)
    assert (seen.loads, seen.models, seen.failures, seen.reload_gaps_s) == (2, 1, (), ())
