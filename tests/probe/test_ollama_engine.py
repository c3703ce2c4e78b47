"""What an engine's lines tell of a load and of its speed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.facts import EngineFacts
from velollm.probe.ollama_activity import parse_activity
from velollm.probe.ollama_engine import compare_options, parse_decode_rate, parse_engine, parse_options
from velollm.units import MIB

STARTED = 'time=2026-01-02T12:00:09.900Z level=INFO source=x.go:1 msg="llama-server started in 1.26 seconds"'
CPU = """\
  - CPU     : AMD Ryzen 7 5700X 8-Core Processor (64220 MiB, 64220 MiB free)
  - CUDA0   : NVIDIA GeForce RTX 2060 (5738 MiB, 5141 MiB free)
system_info: n_threads = 8 (n_threads_batch = 8) / 16 | CPU : SSE3 = 1 | OPENMP = 1 | REPACK = 1 |
load_tensors:   CPU_Mapped model buffer size =   652.91 MiB
load_tensors:   CPU_REPACK model buffer size =   519.75 MiB
load_tensors:        CUDA0 model buffer size =   100.00 MiB
load_tensors:    CUDA_Host model buffer size =    10.00 MiB
llama_context: constructing llama_context
llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB
llama_kv_cache:        CPU KV buffer size =    88.00 MiB
sched_reserve:      CUDA0 compute buffer size =    30.00 MiB
srv    load_model: prompt cache is enabled, size limit: 8192 MiB
load_tensors:        CUDA0 model buffer size =     5.00 MiB
llama_context: constructing llama_context
"""
ANSWERS = """\
slot print_timing: id  0 | task 0 | prompt eval time =       5.04 ms /    310 tokens (    0.16 ms per token)
slot print_timing: id  0 | task 0 |        eval time =    1000.00 ms /    101 tokens (    9.90 ms per token)
slot print_timing: id  0 | task 1 |        eval time =    2000.00 ms /    101 tokens (   19.80 ms per token)
slot print_timing: id  0 | task 2 |        eval time =       0.10 ms /     15 tokens (    0.01 ms per token)
srv        update:  - cache state: 2 prompts, 7.443 MiB (limits: 8192.000 MiB, 4096 tokens, 364292 est)
srv        update:  - cache state: 0 prompts, 0.000 MiB (limits: 8192.000 MiB, 4096 tokens, 364292 est)
"""


def recorded_log(name: str) -> str:
    return (shared_dir("ollama") / "0.33.0-rc2" / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")


def mib(value: float) -> int:
    return round(value * MIB)


def test_a_load_and_its_answers() -> None:
    found = parse_engine([*CPU.splitlines(), STARTED, *ANSWERS.splitlines()], "m")
    assert found == EngineFacts(
        model="m",
        load_s=1.26,
        mapped_bytes=mib(652.91),
        repacked_bytes=mib(519.75),
        plain_bytes=mib(10),
        gpu_weights_bytes=mib(100),
        gpu_used_bytes=mib(100) + mib(20) + mib(30) + mib(5),
        gpu_free_bytes=5141 * MIB,
        prompt_cache_limit_bytes=8192 * MIB,
        prompt_cache_bytes=mib(7.443),
        best_decode_tokens_per_s=100.0,
        timed_answers=2,
        openmp=True,
        draft_weights_bytes=mib(5),
    )
    # A mapped file that was repacked is read once for a token, not twice.
    assert found.weights_bytes == mib(652.91) + mib(10) + mib(100)


def test_an_engine_that_says_nothing_is_unknown() -> None:
    assert parse_engine([]) is None
    assert parse_engine(["srv  load_model: loading model"]) is None
    assert parse_engine([STARTED]) == EngineFacts(load_s=1.26)
    assert parse_engine([STARTED, "srv load_model: prompt cache is disabled - use ..."]) == EngineFacts(
        load_s=1.26, prompt_cache_limit_bytes=0
    )


def test_a_prompt_cache_without_a_limit() -> None:
    found = parse_engine([STARTED, "srv    load_model: prompt cache is enabled, size limit: no limit"])
    assert found is not None
    assert found.prompt_cache_limit_bytes == -1


def test_the_prompt_is_no_answer() -> None:
    prompt, answer, *_ = ANSWERS.splitlines()
    assert parse_decode_rate(prompt) is None
    assert parse_decode_rate(answer) == pytest.approx(100.0)
    assert parse_decode_rate(answer.replace("1000.00 ms", "0.00 ms")) is None


def test_options_of_a_command_line() -> None:
    line = "llama-server --model m --port 1 -c 4096 -np 1 --context-shift -b 512 -t=2"
    line = "llama-server --model m --port 1 -c 4096 -np 1 --context-shift -b 512 -t=2"
    before = parse_options(line.split(" "))
    assert before == {"model": "m", "port": "1", "c": "4096", "np": "1", "context-shift": "", "b": "512", "t": "2"}
    now = {**before, "port": "2", "c": "8192", "keep": "4"}
    del now["context-shift"]
    wanted = {"c": ("4096", "8192"), "context-shift": ("", None), "keep": (None, "4")}
    assert compare_options(before, now) == wanted
    assert compare_options(before, before) == {}


def test_a_negative_number_is_a_value() -> None:
    assert parse_options(["x", "--keep", "-1"]) == {"keep": "-1"}


@given(st.lists(st.text(max_size=60)))
def test_any_text_is_read(lines: list[str]) -> None:
    parse_engine(lines)
    assert compare_options(parse_options(lines), parse_options(lines)) == {}


def test_recorded_reloads() -> None:
    seen = parse_activity(recorded_log("start-load-reload"))
    assert [dict(reload.changes) for reload in seen.option_reloads] == [
        {"c": ("2048", "1024")},
        {"c": ("1024", "2048")},
        {"b": ("512", "256"), "c": ("2048", "1024"), "ub": ("512", "256")},
    ]
    assert [reload.load_s for reload in seen.option_reloads] == [0.25, 0.25, None]
    assert seen.default_context_tokens == 4096


def test_a_recorded_model_with_a_draft() -> None:
    text = (shared_dir("ollama") / "0.33.0-rc2" / "logs" / "speculation-ngram-and-draft.log").read_text(
        errors="replace"
    )
    engine = parse_activity(text).engine
    assert engine is not None
    assert (engine.plain_bytes, engine.repacked_bytes) == (mib(133.16), mib(519.75))
    assert (engine.load_s, engine.timed_answers, engine.openmp) == (1.26, 4, True)
    assert engine.prompt_cache_bytes == mib(23.026)


@pytest.mark.parametrize("name", ["env-bad-value", "kv-type-unknown", "kv-quantized-without-flash"])
def test_a_recorded_load_that_failed_has_no_engine(name: str) -> None:
    assert parse_activity(recorded_log(name)).engine is None


@pytest.mark.parametrize(
    ("line", "errors"),
    [
        ("ggml_cuda_init: failed to initialize CUDA: unknown error", ("failed to initialize CUDA: unknown error",)),
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", ()),
        ("ggml_cuda_init: found 1 CUDA devices:", ()),
    ],
)
def test_why_an_engine_cannot_begin_with_a_gpu(line: str, errors: tuple[str, ...]) -> None:
    assert parse_activity(f"{line}\n{line}\n").gpu_errors == errors
