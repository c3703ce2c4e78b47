from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.buffers import parse_buffers, parse_build, parse_device_buffers, parse_versions
from velollm.models.memory import TERMS
from velollm.units import MIB

# Lines of llama-server b10488 (timestamps cut), of two devices as the engine names them.
LOG = """\
I cmn  common_param: common_params_print_info: build 10488 (abc1234) with GNU 12.2.0 for Linux x86_64
I print_info: no_alloc              = 0
I load_tensors:   CPU_Mapped model buffer size =   320.60 MiB
I load_tensors:   CPU_REPACK model buffer size =   334.76 MiB
I load_tensors:        CUDA0 model buffer size =  1000.50 MiB
I llama_context:        CPU  output buffer size =     1.00 MiB
I llama_kv_cache:        CPU KV buffer size =     8.00 MiB
I llama_kv_cache:        CPU KV buffer size =     6.00 MiB
I llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
I llama_memory_recurrent:        CPU RS buffer size =     6.16 MiB
I sched_reserve:      CUDA0 compute buffer size =    52.27 MiB
I sched_reserve:  CUDA_Host compute buffer size =    10.00 MiB
"""
DRY = LOG.replace("no_alloc              = 0", "no_alloc              = 1")


def test_buffers_by_device_and_kind() -> None:
    found = parse_device_buffers(LOG)
    assert found == {
        "CPU": {
            "weights": round(320.6 * MIB),
            "repack": round(334.76 * MIB),
            "output": MIB,
            "kv": 14 * MIB,
            "recurrent": round(6.16 * MIB),
            "compute": 10 * MIB,
        },
        "CUDA0": {"weights": round(1000.5 * MIB), "kv": 64 * MIB, "compute": round(52.27 * MIB)},
    }
    assert parse_buffers(LOG)["kv"] == 78 * MIB
    assert set(parse_buffers(LOG)) == set(TERMS)


def test_a_dry_load_is_passed_over() -> None:
    assert parse_buffers(DRY) == {}
    both = DRY.splitlines(keepends=True) + LOG.splitlines(keepends=True)[1:]
    assert parse_buffers("".join(both)) == parse_buffers(LOG)


def test_a_compute_buffer_that_is_named_again_counts_once() -> None:
    again = LOG + "I sched_reserve:      CUDA0 compute buffer size =    60.00 MiB\n"
    assert parse_device_buffers(again)["CUDA0"]["compute"] == 60 * MIB


def test_two_models_of_one_load_add_up() -> None:
    draft = "I print_info: no_alloc = 0\nI sched_reserve:      CUDA0 compute buffer size =    1.00 MiB\n"
    assert parse_device_buffers(LOG + draft)["CUDA0"]["compute"] == round(52.27 * MIB) + MIB


def test_a_servers_log_tells_of_its_latest_engine() -> None:
    start = 'level=INFO msg="starting llama-server" cmd="llama-server --model x"\n'
    assert parse_buffers(start + LOG + start + LOG) == parse_buffers(LOG)


def test_the_build_in_one_word() -> None:
    assert parse_build(LOG) == "10488_(abc1234)_with_GNU_12.2.0_for_Linux_x86_64"
    ollama = 'level=INFO msg="Listening on 127.0.0.1:1 (version 0.33.0-rc2)"\n'
    assert parse_build(ollama + LOG) == "ollama-0.33.0-rc2_10488_(abc1234)_with_GNU_12.2.0_for_Linux_x86_64"
    assert parse_build("nothing of the kind") is None


def test_versions_as_their_makers_count_them() -> None:
    ollama = 'routes.go:2 msg="Listening on 127.0.0.1:41231 (version 0.33.0-rc2)"\n'
    assert parse_versions(LOG) == (None, "b10488")
    assert parse_versions(ollama + LOG) == ("0.33.0-rc2", "b10488")
    assert parse_versions(LOG.replace("build 10488", "build 0")) == (None, None)
    assert parse_versions("") == (None, None)


@given(st.text(st.sampled_from("CPU model KV buffer size = 12.MiB\n:_"), max_size=200))
def test_any_text_is_read(text: str) -> None:
    assert all(number >= 0 for number in parse_buffers(text).values())
    parse_build(text)


def test_a_draft_and_pictures_are_told_apart_from_the_model() -> None:
    more = """\
I common_speculative_init_result: loading draft model '/m/draft.gguf'
I print_info: no_alloc              = 0
I load_tensors:   CPU_Mapped model buffer size =    10.00 MiB
I llama_kv_cache:        CPU KV buffer size =     4.00 MiB
I sched_reserve:        CPU compute buffer size =     3.00 MiB
I reserve_compute_meta:        CPU compute buffer size =     7.00 MiB
I reserve_compute_meta:        CPU compute buffer size =     5.00 MiB
"""
    alone, both = parse_device_buffers(LOG)["CPU"], parse_device_buffers(LOG + more)["CPU"]
    assert both == {**alone, "draft": 17 * MIB, "picture": 5 * MIB}


def test_what_mtp_layers_need_is_not_the_models_own() -> None:
    more = """\
I common_speculative_init_result: creating MTP draft context against the target model '/m/model.gguf'
I llama_context:        CPU  output buffer size =     1.00 MiB
I llama_kv_cache:        CPU KV buffer size =     4.00 MiB
I sched_reserve:        CPU compute buffer size =     3.00 MiB
I sched_reserve:        CPU compute buffer size =     2.00 MiB
"""
    alone, both = parse_device_buffers(LOG)["CPU"], parse_device_buffers(LOG + more)["CPU"]
    assert both == {**alone, "draft": 7 * MIB}


def test_a_buffer_that_is_made_anew_after_the_draft_is_the_models() -> None:
    more = """\
I common_speculative_init_result: loading draft model '/m/dflash.gguf'
I print_info: no_alloc              = 0
I sched_reserve:        CPU compute buffer size =     3.00 MiB
I sched_reserve:        CPU compute buffer size =     9.00 MiB
I srv    load_model: speculative decoding context initialized
I sched_reserve:  CUDA_Host compute buffer size =   100.00 MiB
"""
    alone, both = parse_device_buffers(LOG)["CPU"], parse_device_buffers(LOG + more)["CPU"]
    assert both == {**alone, "compute": 100 * MIB, "draft": 9 * MIB}
