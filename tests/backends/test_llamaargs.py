from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.llamaargs import (
    ARG_OF_KNOB,
    DRAFT_TOKENS_ARG,
    parse_ffn_override,
    parse_llama_args,
    parse_speculation_options,
    polling_options,
    render_arg,
    render_ffn_override,
    render_flags,
    speculation_options,
    total_context_tokens,
)
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


@given(st.integers(0, 300))
def test_the_override_of_feed_forward_parts_goes_there_and_back(layers: int) -> None:
    text = render_arg("cpu_ffn_layers", layers)
    # None of these survives every place where settings live, and the engine splits a value at commas.
    assert not set("\\$%,'\" ") & set(text)
    assert parse_llama_args({ARG_OF_KNOB["cpu_ffn_layers"]: text}) == {"cpu_ffn_layers": layers}
    assert render_flags({"cpu_ffn_layers": layers}) == ["--override-tensor", text]


@pytest.mark.parametrize("layers", [0, 1, 12])
def test_the_override_finds_dense_feed_forward_parts_alone(layers: int) -> None:
    pattern = re.compile(render_ffn_override(layers).partition("=")[0])
    inner = ("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
    others = (
        "ffn_norm",
        "ffn_sub_norm",
        "ffn_gate_inp",
        "ffn_gate_inp_shexp",
        "ffn_up_exps",
        "ffn_gate_up_exps",
        "attn_q",
    )
    for layer in range(25):
        assert all(bool(pattern.search(f"blk.{layer}.{name}.weight")) == (layer < layers) for name in inner)
        assert not any(pattern.search(f"blk.{layer}.{name}.weight") for name in others)


@given(st.text())
def test_another_override_is_not_understood(text: str) -> None:
    layers = parse_ffn_override(text)
    assert layers is None or render_ffn_override(layers) == text
    assert parse_ffn_override("blk[.](0|2)[.]ffn_(gate|up|down)(_shexp)?[.](weight|bias)=CPU") is None


def test_what_the_engine_takes_for_no_truth_value_is_left_out() -> None:
    environ = {"LLAMA_ARG_KV_UNIFIED": "1", "LLAMA_ARG_KV_OFFLOAD": "perhaps", "LLAMA_ARG_N_GPU_LAYERS": "all"}
    assert parse_llama_args(environ) == {"kv_unified": "on"}


def test_flags() -> None:
    argv = render_flags({"threads": 2, "context_tokens": 1024, "slots": 2, "speculation": "ngram-mod"})
    assert argv == ["--threads", "2", "--parallel", "2", "--spec-type", "ngram-mod", "--ctx-size", "2048"]


DRAFT: dict[str, KnobValue] = {"speculation": "draft-simple", "draft_model": "/m/d.gguf", "speculation_tokens": 5}


def test_a_draft_and_its_length() -> None:
    argv = ["--spec-type", "draft-simple", "--spec-draft-model", "/m/d.gguf", "--spec-draft-n-max", "5"]
    assert render_flags(DRAFT) == argv
    environ = {ARG_OF_KNOB["speculation"]: "draft-simple", ARG_OF_KNOB["draft_model"]: "/m/d.gguf"}
    assert parse_llama_args({**environ, DRAFT_TOKENS_ARG: "5"}) == DRAFT
    assert "speculation_tokens" not in parse_llama_args({DRAFT_TOKENS_ARG: "5"})
    assert render_flags({**DRAFT, "speculation": "none"}) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ngram-mod", {"spec-ngram-mod-n-match": 8, "spec-ngram-mod-n-min": 12, "spec-ngram-mod-n-max": 16}),
        ("ngram-simple", {"spec-ngram-simple-size-n": 8, "spec-ngram-simple-size-m": 16}),
        ("ngram-map-k4v", {"spec-ngram-map-k4v-size-n": 8, "spec-ngram-map-k4v-size-m": 16}),
        ("ngram-cache", {}),
        ("draft-mtp", {"spec-draft-n-max": 16}),
        ("none", {}),
    ],
)
def test_the_lengths_of_each_kind(kind: str, expected: dict[str, int]) -> None:
    knobs: dict[str, KnobValue] = {"speculation": kind, "speculation_tokens": 16, "speculation_match": 8}
    assert speculation_options(knobs) == expected
    found = parse_speculation_options({option: str(value) for option, value in expected.items()}, kind)
    lengths = {"speculation_tokens": 16, "speculation_match": 8}
    assert found == (lengths if kind.startswith("ngram") and kind != "ngram-cache" else {})


def test_what_only_a_flag_or_a_variable_of_openmp_carries() -> None:
    assert render_flags({"batch_threads": 4, "repack": "off", "cache_reuse": 256}) == [
        *("--threads-batch", "4", "--no-repack", "--cache-reuse", "256")
    ]
    assert render_flags({"polling": 0}) == ["--poll", "0"]
    assert polling_options({**DRAFT, "polling": 50}) == {"poll": 50, "spec-draft-poll": 1}
    assert render_flags({"priority": "high"}) == ["--prio", "2"]
    assert render_flags({"priority": "normal"}) == []
    assert render_flags({"batch_threads": None, "repack": "on", "cache_reuse": 0, "openmp_wait": "passive"}) == []
