"""What two looks at a server tell, from a recorded engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import read_log, recorded
from tests.report.test_terminal import shown
from velollm.facts import GpuFacts
from velollm.report.status import render_sample, render_sample_line, sample_fields
from velollm.status.sample import (
    LogSpeeds,
    ModelSample,
    Sample,
    Slot,
    Speeds,
    compare_samples,
    decoded_between,
    parse_buffers,
    parse_log_speeds,
    parse_metrics,
    parse_parts,
    parse_slots,
)
from velollm.units import MIB


def look(at_s: float, **values: Any) -> Sample:
    return Sample(at_s, True, (ModelSample("m:1b", **values),))


def speeds(before: Sample | None, now: Sample) -> Speeds:
    return compare_samples(before, now)["m:1b"]


def test_slots_of_a_recorded_engine() -> None:
    found = parse_slots(recorded("slots", "child")["body"])
    assert found == (
        Slot(0, False, context_tokens=2048),
        Slot(1, False, 21, 2048, 23, 0),
    )


def test_metrics_of_a_recorded_engine() -> None:
    found = parse_metrics(recorded("metrics", "child")["text"])
    assert found is not None
    assert (found["tokens_predicted_total"], found["tokens_predicted_seconds_total"]) == (40, 0.022637)
    assert (found["prompt_tokens_total"], found["requests_deferred"]) == (4, 0)


def test_memory_by_part_of_a_recorded_log() -> None:
    (parts,) = parse_buffers(read_log("start-load-reload")).values()
    assert set(parts["CPU"]) == {"weights", "KV cache", "compute"}
    assert parts["CPU"]["weights"] > MIB


def test_parts_of_several_devices_add_up() -> None:
    lines = [
        "load_tensors:        CUDA0 model buffer size =   100.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =    50.50 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =    10.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =     2.00 MiB",
        "sched_reserve:       CUDA0 compute buffer size =     6.00 MiB",
        "llama_context:  CUDA_Host  output buffer size =     1.00 MiB",
    ]
    assert parse_parts(lines) == {
        "CUDA0": {"weights": 100 * MIB, "KV cache": 12 * MIB, "compute": 6 * MIB},
        "CPU_Mapped": {"weights": round(50.5 * MIB)},
        "CUDA_Host": {"compute": MIB},
    }


def test_speeds_of_the_last_answer_in_a_log() -> None:
    text = (
        "slot print_timing: id 0 | prompt eval time =     250.00 ms /   100 tokens (2.5 ms per token, 400 per second)\n"
        "slot print_timing: id 0 |        eval time =    1000.00 ms /    50 tokens (20 ms per token, 50 per second)\n"
    )
    assert parse_log_speeds(text) == LogSpeeds(0.25, 400.0, 50.0)
    assert parse_log_speeds("nothing of that") is None


def test_decode_is_what_all_slots_answered_in_between() -> None:
    before = look(10.0, slots=(Slot(0, True, 7, 2048, 100, 40), Slot(1, True, 8, 2048, 100, 90)))
    now = look(12.0, slots=(Slot(0, True, 7, 2048, 100, 60), Slot(1, True, 9, 2048, 100, 10)))
    found = speeds(before, now)
    assert (found.decode_tokens_per_s, found.decode_from) == (15.0, "/slots")


def test_busy_slots_that_answer_nothing_are_slow_and_not_unknown() -> None:
    slots = (Slot(0, True, 7, 2048, 100, 40),)
    found = speeds(look(1.0, slots=slots), look(2.0, slots=slots, log=LogSpeeds(0.1, 1.0, 99.0)))
    assert (found.decode_tokens_per_s, found.decode_from) == (0.0, "/slots")


def test_counters_that_rose_tell_of_answers_that_ended_in_between() -> None:
    idle = (Slot(0, False, 7, 2048, 100, 0),)
    names = ("tokens_predicted_total", "tokens_predicted_seconds_total", "prompt_tokens_total", "prompt_seconds_total")
    before = look(1.0, slots=idle, counters=dict(zip(names, (100.0, 2.0, 50.0, 1.0), strict=True)))
    now = look(2.0, slots=idle, counters=dict(zip(names, (140.0, 3.0, 250.0, 1.5), strict=True)))
    found = speeds(before, now)
    assert (found.decode_tokens_per_s, found.decode_from) == (40.0, "/metrics")
    assert (found.prefill_tokens_per_s, found.prefill_from) == (400.0, "/metrics")
    began_anew = speeds(now, replace(before, at_s=3.0))
    assert (began_anew.decode_tokens_per_s, began_anew.decode_from) == (0.0, "/slots")
    assert began_anew.prefill_tokens_per_s is None


def test_without_anything_to_read_it_is_unknown() -> None:
    assert speeds(None, look(1.0)) == Speeds()
    assert speeds(look(1.0), look(2.0)) == Speeds()


def test_the_log_stands_in_where_the_engine_cannot_be_asked() -> None:
    found = speeds(None, look(1.0, log=LogSpeeds(0.5, 80.0, 20.0)))
    assert (found.ttft_s, found.prefill_tokens_per_s, found.decode_tokens_per_s) == (0.5, 80.0, 20.0)
    assert {found.ttft_from, found.prefill_from, found.decode_from} == {"log, last answer"}


slot = st.builds(Slot, st.integers(0, 3), st.booleans(), st.integers(0, 3), st.none(), st.none(), st.integers(0, 99))


@given(st.lists(slot, max_size=4), st.lists(slot, max_size=4))
def test_tokens_in_between_are_never_less_than_none_nor_more_than_were_answered(a: list[Slot], b: list[Slot]) -> None:
    assert 0 <= decoded_between(a, b) <= sum(found.decoded_tokens or 0 for found in b)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "next_token", "n_decoded"]), inner)
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_reply_is_read_or_refused(data: object) -> None:
    found = parse_slots(data)
    assert found is None or all(isinstance(one.number, int) for one in found)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    parse_metrics(text), parse_buffers(text), parse_log_speeds(text)
    assert parse_metrics(f"{text}\nllamacpp:requests_processing 3")


BUSY = ModelSample(
    "m:1b",
    size_bytes=64 * MIB,
    context_tokens=2048,
    slots=(Slot(0, True, 1, 2048, 120, 30), Slot(1, False)),
    memory={"CUDA0": {"weights": 40 * MIB, "KV cache": 8 * MIB}},
    resident_bytes=80 * MIB,
)


def test_a_look_on_a_terminal() -> None:
    gpu = GpuFacts(name="A GPU", vram_bytes=1024 * MIB, vram_used_bytes=512 * MIB)
    sample = Sample(1.0, True, (BUSY,), (gpu,))
    text = shown(render_sample(sample, {"m:1b": Speeds(12.5, "/slots")}, "http://127.0.0.1:1", 1.0))
    assert "weights 40.0 MiB, KV cache 8.0 MiB (log)" in text
    assert "decode       12.5 tok/s (/slots)" in text
    assert "TTFT         unknown" in text
    assert "busy: 120 of 2,048 tokens held, 30 answered" in text
    assert "A GPU: 512 MiB of 1.0 GiB used" in text
    assert "nothing answers" in shown(render_sample(Sample(1.0, False), {}, "x", 1.0))
    assert "no model in memory" in shown(render_sample(Sample(1.0, True), {}, "x", 1.0))


def test_a_look_in_a_pipe_is_one_line() -> None:
    line = render_sample_line(Sample(1.0, True, (BUSY,)), {"m:1b": Speeds(ttft_s=0.84, ttft_from="log")}, "12:00:00")
    assert line.startswith("12:00:00  m:1b: 1/2 slots busy, decode unknown, prefill unknown, TTFT 0.84 s (log), memory")
    assert "\n" not in line
    assert render_sample_line(Sample(1.0, False), {}, "12:00:00") == "12:00:00  nothing answers"


def test_a_look_as_a_document() -> None:
    fields = sample_fields(Sample(1.0, True, (BUSY,)), {}, "now")
    assert fields["models"][0]["speeds"]["decode_from"] == "unknown"
    assert fields["models"][0]["slots"][0]["decoded_tokens"] == 30
    assert fields["gpus"] is None
