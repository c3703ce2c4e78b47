from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.llamaargs import ARG_OF_KNOB, parse_llama_args, render_flags, total_context_tokens
from velollm.knobs import KnobValue


def test_total_context_is_for_all_slots() -> None:
    assert total_context_tokens({"context_tokens": 4096, "slots": 4}) == 16384
    assert total_context_tokens({"context_tokens": 4096}) == 4096
    assert total_context_tokens({"slots": 4}) is None


def test_parse_llama_args() -> None:
    environ = {
        "LLAMA_ARG_THREADS": "4",
        "LLAMA_ARG_CTX_SIZE": "16384",
        "LLAMA_ARG_N_PARALLEL": "4",
        "LLAMA_ARG_FLASH_ATTN": "on",
        "LLAMA_ARG_BATCH": "many",
        "HOME": "/root",
    }
    assert parse_llama_args(environ) == {"threads": 4, "slots": 4, "flash_attention": "on", "context_tokens": 4096}


@given(st.dictionaries(st.sampled_from(["LLAMA_ARG_THREADS", "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_N_PARALLEL"]), st.text()))
def test_parse_llama_args_never_raises(environ: dict[str, str]) -> None:
    assert all(value is not None for value in parse_llama_args(environ).values())


def test_flags_leave_unset_knobs_to_the_engine() -> None:
    assert render_flags({}) == []
    assert render_flags({"threads": None, "speculation": "none"}) == []


def test_placement_goes_there_and_back() -> None:
    knobs: dict[str, KnobValue] = {"gpu_layers": 0, "cpu_moe_layers": 12, "kv_unified": "on", "kv_offload": "off"}
    assert render_flags(knobs) == ["--n-gpu-layers", "0", "--n-cpu-moe", "12", "--kv-unified", "--no-kv-offload"]
    assert render_flags({"kv_unified": "off", "kv_offload": "on"}) == []
    assert parse_llama_args({ARG_OF_KNOB[name]: str(value) for name, value in knobs.items()}) == knobs


def test_what_the_engine_takes_for_no_truth_value_is_left_out() -> None:
    environ = {"LLAMA_ARG_KV_UNIFIED": "1", "LLAMA_ARG_KV_OFFLOAD": "perhaps", "LLAMA_ARG_N_GPU_LAYERS": "all"}
    assert parse_llama_args(environ) == {"kv_unified": "on"}


def test_flags() -> None:
    argv = render_flags({"threads": 2, "context_tokens": 1024, "slots": 2, "speculation": "ngram-mod"})
    assert argv == ["--threads", "2", "--parallel", "2", "--spec-type", "ngram-mod", "--ctx-size", "2048"]
