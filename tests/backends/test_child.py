from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from velollm.backends.child import Child, explain_end, name_shortage, pick_reason
from velollm.errors import VeloError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ready(line: str) -> str | None:
    return line.removeprefix("ready ") if line.startswith("ready ") else None


def test_ready_value_and_log(tmp_path: Path) -> None:
    child = Child(python("print('ready here', flush=True); input()"), log=tmp_path / "log", ready=ready)
    assert child.wait_ready(20) == "here"
    assert child.alive
    child.stop()
    assert not child.alive
    assert "ready here" in (tmp_path / "log").read_text()


def test_child_that_ends_is_never_ready(tmp_path: Path) -> None:
    child = Child(python("print('error: no such thing')"), log=tmp_path / "log", ready=ready)
    assert child.wait_ready(20) is None
    assert child.wait_end(20) == 0
    assert child.why_it_failed() == "error: no such thing"
    child.stop()


def test_stop_reaps_grandchildren(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', p.pid, flush=True); p.wait()"
    )
    child = Child(python(code), log=tmp_path / "log", ready=ready)
    value = child.wait_ready(20)
    assert value is not None
    grandchild = psutil.Process(int(value))
    child.stop()
    # The grandchild is nobody's to wait for but init's: gone or a zombie is dead.
    psutil.wait_procs([grandchild], timeout=10)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_gentle_stop_lets_the_child_finish(tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('goodbye', flush=True), sys.exit(0)))\n"
        "print('ready x', flush=True)\nwhile True: signal.pause()"
    )
    child = Child(python(code), log=tmp_path / "log", ready=ready)
    child.wait_ready(20)
    child.stop(gently=True)
    assert child.wait_end(1) == 0
    assert "goodbye" in (tmp_path / "log").read_text()


def test_stdin_closes_when_the_parent_is_killed(tmp_path: Path) -> None:
    inner = "import sys; print('ready', __import__('os').getpid(), flush=True); sys.stdin.read()"
    code = (
        "import sys; from pathlib import Path; from velollm.backends.child import Child\n"
        f"c = Child([sys.executable, '-c', {inner!r}], log=Path({str(tmp_path / 'inner')!r}),"
        " ready=lambda l: l.split()[1] if l.startswith('ready') else None)\n"
        "print('ready', c.wait_ready(20), flush=True)\nimport time; time.sleep(600)"
    )
    parent = Child(python(code), log=tmp_path / "log", ready=ready)
    value = parent.wait_ready(30)
    assert value is not None
    orphan = psutil.Process(int(value))
    os.kill(parent.pid, signal.SIGKILL)
    psutil.wait_procs([orphan], timeout=10)
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    parent.stop()


def test_missing_program_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="cannot start"):
        Child([str(tmp_path / "nowhere")], log=tmp_path / "log")


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="log"):
        Child(python("pass"), log=tmp_path / "missing" / "log")


def test_pick_reason_takes_the_first_telling_line() -> None:
    assert pick_reason(["loading", "gguf: failed to open", "exiting due to error"]) == "gguf: failed to open"
    assert pick_reason(["all is well"]) == ""


def test_pick_reason_takes_what_the_engine_marks_as_an_error() -> None:
    """Words of llama-server b10488, started with a quantized V cache and without flash attention."""
    lines = [
        "0.00.014.240 I cmn  common_init_: added </s> logit bias = -inf",
        "0.00.014.383 E llama_init_from_model: quantized V cache requires flash_attn to be enabled",
        "0.00.014.386 E cmn  common_init_: failed to create context with model 'made-tiny.gguf'",
    ]
    assert pick_reason(lines) == "llama_init_from_model: quantized V cache requires flash_attn to be enabled"


def test_pick_reason_takes_an_assertion_before_all() -> None:
    normal = "0.00.010.671 E llama_init_from_model: failed: x (this warning is normal during memory fitting)"
    asserted = "/src/ggml.c:2263: GGML_ASSERT(ggml_can_repeat(b, a)) failed"
    assert pick_reason([normal, "0.00.020.391 E srv load_model: failed", asserted, "couldn't go on"]) == asserted
    assert pick_reason([normal]) == ""
    short = "0.00.020.391 E alloc_tensor_range: failed to allocate CPU buffer of size 99"
    assert pick_reason([short, asserted]) == "alloc_tensor_range: failed to allocate CPU buffer of size 99"
    heads = "llama_init_from_model: context type MTP requested but model doesn't contain MTP layers"
    after = "0.00.020.391 E common_speculative_init_result: failed to create MTP context"
    assert pick_reason([f"0.00.020.391 W {heads}", after]) == heads


def test_an_error_that_the_engine_went_on_after_is_not_the_cause() -> None:
    fit = "0.00.008.534 E common_fit_params: encountered an error while trying to fit params to free device memory"
    cause = "0.00.010.726 E llama_model_load: error loading model: error loading model vocabulary: std::bad_alloc"
    after = ["0.00.010.766 E cmn  common_init_: failed to load model", "I cleaning up", "0.00.011.128 E srv : exiting"]
    loading = ["0.00.009.596 I llama_model_loader: - type  f16:   44 tensors"] * 8
    assert pick_reason([fit, *loading, cause, *after]) == cause[15:]
    assert pick_reason([fit, *loading]) == fit[15:]


def test_pick_reason_joins_an_exception_and_what_it_says() -> None:
    lines = ["terminate called after throwing an instance of 'std::system_error'", "  what():  Resource unavailable"]
    assert pick_reason(lines) == "std::system_error: Resource unavailable"
    assert pick_reason(lines[:1]) == "std::system_error"


ALLOCATION = "0.00.064.227 E ggml_aligned_malloc: insufficient memory (attempted to allocate 1024.00 MB)"


@pytest.mark.parametrize(
    ("status", "lines", "reason"),
    [
        (-9, [ALLOCATION], "it was killed, most likely for want of memory"),
        (137, ["error: of before"], "it was killed, most likely for want of memory"),
        (1, [ALLOCATION], f"memory is short: {ALLOCATION[15:]}"),
        (-6, ["ggml.c:1: GGML_ASSERT(x) failed"], "ggml.c:1: GGML_ASSERT(x) failed"),
        (-11, ["all is well"], "it was ended by signal 11 (Segmentation fault)"),
        (139, [], "it was ended by signal 11 (Segmentation fault)"),
        (3, ["all is well"], "exit status 3"),
        (255, [], "exit status 255"),
        (None, ["all is well"], ""),
        (None, ["error: slow"], "error: slow"),
    ],
)
def test_why_a_process_ended(status: int | None, lines: list[str], reason: str) -> None:
    assert explain_end(status, lines) == reason


@pytest.mark.parametrize(
    "words",
    [
        "alloc_tensor_range: failed to allocate CPU buffer of size 1073741824",
        "allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory",
        "failed to initialize the context: std::bad_alloc",
        "ggml.c:1643: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
        "mmap failed: Cannot allocate memory",
    ],
)
def test_want_of_memory_is_named(words: str) -> None:
    assert name_shortage(f"0.00.065.301 E {words}") == f"memory is short: {words}"
    assert name_shortage("0.00.065.301 E no such tensor") == "no such tensor"


def test_pick_reason_prefers_what_the_engine_says() -> None:
    wrapper = "velollm-error RuntimeError: Failed to start"
    bind = "0.00.012.626 E srv         start: couldn't bind HTTP server socket"
    told = "srv         start: couldn't bind HTTP server socket"
    assert pick_reason([wrapper, bind]) == pick_reason([bind, wrapper]) == told
    assert pick_reason(["all is well", wrapper]) == wrapper


def test_what_a_child_says_is_awaited_and_an_ended_child_says_no_more(tmp_path: Path) -> None:
    code = "import sys; sys.stdin.readline(); print('the reason: none', flush=True)"
    child = Child([sys.executable, "-c", code], log=tmp_path / "log", first_line="go on")

    def find(word: str) -> Callable[[str], str | None]:
        return lambda text: next((line for line in text.splitlines() if word in line), None)

    try:
        assert child.wait_for(find("reason"), 30) == "the reason: none"
        assert child.wait_end(30) == 0
        assert child.wait_for(find("absent"), 30) is None
    finally:
        child.stop()
