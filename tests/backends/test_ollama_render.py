from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backends.ollama_render import (
    LLAMA_SERVER_ERA,
    parse_keep_alive,
    parse_settings,
    parse_version,
    render_settings,
    supported_knobs,
)
from velollm.knobs import KNOBS, KV_TYPES, Knobs, KnobValue

CURRENT = (0, 33, 0)
OLD = (0, 24, 0)
DEFAULTS: dict[str, KnobValue] = {
    "threads": 8,
    "context_tokens": 4096,
    "slots": 1,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "flash_attention": "auto",
    "batch": 512,
    "ubatch": 512,
    "keep_alive_s": 300,
    "load_mode": "none",
    "speculation": "none",
    "max_loaded_models": 3,
    "kv_unified": "off",
    "kv_offload": "on",
    "gpu_layers": None,
    "cpu_moe_layers": None,
    "cpu_ffn_layers": None,
    "priority": "normal",
}
Rendered = dict[tuple[str, str], tuple[str, str]]


def rendered_for(version: tuple[int, int, int] | None, changes: Mapping[str, KnobValue]) -> Rendered:
    """Settings for these changes to the defaults: {(target, key): (value, knob)}."""
    settings = render_settings({**DEFAULTS, **changes}, DEFAULTS, version)
    found: Rendered = {}
    for setting in settings:
        assert (setting.target, setting.key) not in found
        found[setting.target, setting.key] = (setting.value, setting.knob)
    return found


def rendered(**changes: KnobValue) -> Rendered:
    return rendered_for(CURRENT, changes)


@pytest.mark.parametrize(("version", "knows"), [((0, 32, 14), False), ((0, 32, 15), True), (None, True)])
def test_the_priority_goes_through_the_engines_own_file(version: tuple[int, int, int] | None, knows: bool) -> None:
    assert ("priority" in supported_knobs(version)) is knows
    assert rendered_for(version, {"priority": "high"}) == ({("config", "prio"): ("2", "priority")} if knows else {})
    assert parse_settings({}, {}, {"prio": "2"}) == {"priority": "high"}
    assert parse_settings({}, {}, {"prio": "9"}) == parse_settings({}, {}, {"prio": "x"}) == {}


def test_the_defaults_need_no_setting() -> None:
    assert rendered() == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"threads": 4}, {("model", "num_thread"): ("4", "threads")}),
        ({"context_tokens": 2048}, {("model", "num_ctx"): ("2048", "context_tokens")}),
        ({"slots": 4, "context_tokens": 1024}, {("environment", "OLLAMA_NUM_PARALLEL"): ("4", "slots")}),
        ({"batch": 256, "ubatch": 256}, {("model", "num_batch"): ("256", "batch")}),
        ({"flash_attention": "on"}, {("environment", "OLLAMA_FLASH_ATTENTION"): ("1", "flash_attention")}),
        ({"flash_attention": "off"}, {("environment", "OLLAMA_FLASH_ATTENTION"): ("0", "flash_attention")}),
        ({"keep_alive_s": 3600}, {("environment", "OLLAMA_KEEP_ALIVE"): ("3600s", "keep_alive_s")}),
        ({"keep_alive_s": -1}, {("environment", "OLLAMA_KEEP_ALIVE"): ("-1", "keep_alive_s")}),
        ({"max_loaded_models": 1}, {("environment", "OLLAMA_MAX_LOADED_MODELS"): ("1", "max_loaded_models")}),
        ({"load_mode": "mmap"}, {("model", "use_mmap"): ("true", "load_mode")}),
        ({"speculation": "ngram-mod"}, {("environment", "LLAMA_ARG_SPEC_TYPE"): ("ngram-mod", "speculation")}),
        ({"batch_threads": 2}, {("config", "threads-batch"): ("2", "batch_threads")}),
        ({"polling": 0}, {("config", "poll"): ("0", "polling")}),
        ({"repack": "off"}, {("environment", "LLAMA_ARG_REPACK"): ("off", "repack")}),
        ({"openmp_wait": "passive"}, {("environment", "OMP_WAIT_POLICY"): ("passive", "openmp_wait")}),
        ({"cache_reuse": 256}, {("environment", "LLAMA_ARG_CACHE_REUSE"): ("256", "cache_reuse")}),
        ({"gpu_layers": 0}, {("model", "num_gpu"): ("0", "gpu_layers")}),
        ({"cpu_moe_layers": 12}, {("environment", "LLAMA_ARG_N_CPU_MOE"): ("12", "cpu_moe_layers")}),
        (
            {"cpu_ffn_layers": 2},
            {
                ("environment", "LLAMA_ARG_OVERRIDE_TENSOR"): (
                    "blk[.](0|1)[.]ffn_(gate|up|down)(_shexp)?[.](weight|bias)=CPU",
                    "cpu_ffn_layers",
                )
            },
        ),
        ({"kv_unified": "on"}, {("environment", "LLAMA_ARG_KV_UNIFIED"): ("on", "kv_unified")}),
        ({"kv_offload": "off"}, {("environment", "LLAMA_ARG_KV_OFFLOAD"): ("off", "kv_offload")}),
    ],
)
def test_each_knob(changes: dict[str, KnobValue], expected: Rendered) -> None:
    found = rendered(**changes)
    assert expected.items() <= found.items()
    assert {knob for _, knob in found.values()} == set(changes) - {"ubatch"}


def test_every_knob_can_be_set() -> None:
    assert supported_knobs(CURRENT) == frozenset(KNOBS)


def test_lengths_of_earlier_text_go_to_the_config() -> None:
    assert rendered(speculation="ngram-simple", speculation_tokens=16, speculation_match=8) == {
        ("environment", "LLAMA_ARG_SPEC_TYPE"): ("ngram-simple", "speculation"),
        ("config", "spec-ngram-simple-size-n"): ("8", "speculation_match"),
        ("config", "spec-ngram-simple-size-m"): ("16", "speculation_tokens"),
    }


def test_a_draft_is_the_servers() -> None:
    changes: dict[str, KnobValue] = {"speculation": "draft-simple", "draft_model": "/b/x", "speculation_tokens": 6}
    expected = {
        ("environment", "LLAMA_ARG_SPEC_TYPE"): ("draft-simple", "speculation"),
        ("environment", "LLAMA_ARG_SPEC_DRAFT_MODEL"): ("/b/x", "draft_model"),
        ("environment", "LLAMA_ARG_SPEC_DRAFT_N_MAX"): ("6", "speculation_tokens"),
    }
    assert rendered(**changes) == expected
    found = parse_settings({key: value for (_, key), (value, _) in expected.items()}, {})
    assert {name: found[name] for name in changes} == changes


def test_layers_for_guessing_are_a_parameter_of_the_model() -> None:
    assert rendered(speculation="draft-mtp") == {("model", "draft_num_predict"): ("4", "speculation")}
    found = rendered(speculation="draft-mtp", speculation_tokens=2)
    assert found == {("model", "draft_num_predict"): ("2", "speculation")}
    assert parse_settings({}, {"draft_num_predict": 4}) == {"speculation": "draft-mtp"}
    assert parse_settings({}, {"draft_num_predict": 2}) == {"speculation": "draft-mtp", "speculation_tokens": 2}


def test_lengths_come_back_from_the_config() -> None:
    options = {"spec-ngram-mod-n-min": "12", "spec-ngram-mod-n-max": "16", "spec-ngram-mod-n-match": "8"}
    more = {"threads-batch": "4", "poll": "0"}
    found = parse_settings({"LLAMA_ARG_SPEC_TYPE": "ngram-mod"}, {}, {**options, **more})
    lengths = {"speculation_tokens": 16, "speculation_match": 8}
    assert found == {"speculation": "ngram-mod", **lengths, "batch_threads": 4, "polling": 0}


def test_a_mode_without_a_setting_of_ollamas_is_left_out() -> None:
    assert rendered(load_mode="mlock") == {}
    assert rendered(flash_attention="auto") == {}


def test_one_kv_type_has_ollamas_own_variable() -> None:
    assert rendered(kv_type_k="q8_0", kv_type_v="q8_0") == {
        ("environment", "OLLAMA_KV_CACHE_TYPE"): ("q8_0", "kv_type_k")
    }


@pytest.mark.parametrize(("k", "v"), [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q4_0")])
def test_different_kv_types_go_to_the_engine(k: str, v: str) -> None:
    assert rendered(kv_type_k=k, kv_type_v=v) == {
        ("environment", "LLAMA_ARG_CACHE_TYPE_K"): (k, "kv_type_k"),
        ("environment", "LLAMA_ARG_CACHE_TYPE_V"): (v, "kv_type_v"),
    }


def test_a_physical_batch_of_its_own_needs_the_engines_variables() -> None:
    assert rendered(batch=1024, ubatch=256) == {
        ("model", "num_batch"): ("-1", "batch"),
        ("environment", "LLAMA_ARG_BATCH"): ("1024", "batch"),
        ("environment", "LLAMA_ARG_UBATCH"): ("256", "ubatch"),
    }
    assert rendered(ubatch=128)["environment", "LLAMA_ARG_BATCH"] == ("512", "batch")


@pytest.mark.parametrize("changes", [{"context_tokens": 8192}, {"slots": 4}, {"context_tokens": 2048, "slots": 4}])
def test_the_batch_is_pinned_where_it_would_grow_with_the_context(changes: dict[str, KnobValue]) -> None:
    assert rendered(**changes)["model", "num_batch"] == ("512", "batch")


def test_the_batch_is_not_pinned_where_it_would_stay() -> None:
    assert ("model", "num_batch") not in rendered(context_tokens=2048)


@pytest.mark.parametrize("version", [OLD, (0, 29, 9)])
def test_servers_before_llama_server_get_no_variable_of_its_own(version: tuple[int, int, int]) -> None:
    changes: Knobs = {"speculation": "ngram-mod", "batch": 1024, "ubatch": 128, "cpu_moe_layers": 3, "kv_unified": "on"}
    found = rendered_for(version, {**changes, "threads": 4, "slots": 2, "keep_alive_s": -1, "gpu_layers": 9})
    assert not any(key.startswith("LLAMA_ARG_") for _, key in found)
    assert {"num_thread", "num_gpu", "OLLAMA_NUM_PARALLEL", "OLLAMA_KEEP_ALIVE"} <= {key for _, key in found}
    assert found["model", "num_batch"] == ("1024", "batch")


def test_servers_before_llama_server_have_one_kv_type() -> None:
    assert not any(key.startswith("LLAMA_ARG_") for _, key in rendered_for(OLD, {"kv_type_k": "q8_0"}))


@pytest.mark.parametrize("version", [LLAMA_SERVER_ERA, CURRENT, None])
def test_current_and_unknown_servers_get_every_knob(version: tuple[int, int, int] | None) -> None:
    assert ("environment", "LLAMA_ARG_SPEC_TYPE") in rendered_for(version, {"speculation": "ngram-mod"})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.33.0-rc2", (0, 33, 0)),
        ("v0.5.13", (0, 5, 13)),
        ("0.0.0", None),
        ("", None),
        ("main", None),
        ("1.2", None),
    ],
)
def test_versions(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(1, 128),
        "context_tokens": st.integers(4, 1 << 18),
        "slots": st.integers(1, 16),
        "kv_type_k": st.sampled_from(KV_TYPES),
        "kv_type_v": st.sampled_from(KV_TYPES),
        "flash_attention": st.sampled_from(["auto", "on", "off"]),
        "keep_alive_s": st.integers(-1, 10**6),
        "max_loaded_models": st.integers(1, 20),
        "speculation": st.sampled_from(["none", "ngram-mod", "ngram-simple"]),
        "batch": st.integers(1, 4096),
        "ubatch": st.integers(1, 4096),
        "gpu_layers": st.integers(0, 200),
        "cpu_moe_layers": st.integers(0, 200),
        "cpu_ffn_layers": st.integers(0, 200),
        "kv_unified": st.sampled_from(["on", "off"]),
        "kv_offload": st.sampled_from(["on", "off"]),
    },
)


@given(CHANGES)
def test_what_is_rendered_is_read_back(changes: dict[str, KnobValue]) -> None:
    wanted: Knobs = {**DEFAULTS, **changes}
    settings = render_settings(wanted, DEFAULTS, CURRENT)
    environ = {s.key: s.value for s in settings if s.target == "environment"}
    parameters = {s.key: int(s.value) for s in settings if s.target == "model"}
    found = {**DEFAULTS, **parse_settings(environ, parameters)}
    assert found == wanted


@pytest.mark.parametrize(
    ("environ", "knobs"),
    [
        ({"OLLAMA_NUM_PARALLEL": "0"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "many"}, {}),
        ({"OLLAMA_CONTEXT_LENGTH": "8192"}, {"context_tokens": 8192}),
        ({"OLLAMA_KEEP_ALIVE": "1h30m"}, {"keep_alive_s": 5400}),
        ({"OLLAMA_KEEP_ALIVE": "-1"}, {"keep_alive_s": -1}),
        ({"OLLAMA_KEEP_ALIVE": "soon"}, {}),
        ({"OLLAMA_FLASH_ATTENTION": "false"}, {"flash_attention": "off"}),
        ({"OLLAMA_FLASH_ATTENTION": "auto"}, {"flash_attention": "on"}),
        ({"OLLAMA_KV_CACHE_TYPE": "Q8_0"}, {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ({"LLAMA_ARG_THREADS": "3"}, {"threads": 3}),
        ({"LLAMA_ARG_N_GPU_LAYERS": "20"}, {"gpu_layers": 20}),
        ({"LLAMA_ARG_KV_UNIFIED": "true", "LLAMA_ARG_N_CPU_MOE": "4"}, {"kv_unified": "on", "cpu_moe_layers": 4}),
        ({"PATH": "/bin"}, {}),
    ],
)
def test_a_users_environment(environ: dict[str, str], knobs: dict[str, KnobValue]) -> None:
    assert parse_settings(environ, {}) == knobs


def test_a_models_parameter_comes_before_the_environment() -> None:
    found = parse_settings(
        {"OLLAMA_CONTEXT_LENGTH": "8192", "LLAMA_ARG_THREADS": "8"}, {"num_ctx": 512, "num_thread": 2}
    )
    assert found == {"context_tokens": 512, "threads": 2}


def test_parameters_of_the_wrong_type_are_left_out() -> None:
    assert parse_settings({}, {"num_ctx": "many", "num_thread": 0, "num_gpu": -1}) == {}


@given(st.text(max_size=12))
def test_no_keep_alive_raises(text: str) -> None:
    seconds = parse_keep_alive(text)
    assert seconds is None or seconds >= -1
