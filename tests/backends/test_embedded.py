from __future__ import annotations

import enum
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from velollm.backends import embedded
from velollm.backends.base import Setting
from velollm.backends.embedded import EmbeddedBackend, libgomp_command, parse_ready
from velollm.backends.embedded_child import make_params
from velollm.facts import CpuFacts, Facts
from velollm.knobs import KNOBS

BACKEND = EmbeddedBackend()
FACTS = Facts(cpu=CpuFacts(physical_cores=4), gpus=())


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("velollm-ready http://127.0.0.1:40123", "http://127.0.0.1:40123"),
        ("velollm-ready ", None),
        ("x velollm-ready http://127.0.0.1:1", None),
        ("velollm-ready http://127.0.0.1:1 and more", None),
        ("velollm-error RuntimeError: no", None),
        ("server is listening on http://127.0.0.1:1", None),
    ],
)
def test_parse_ready(line: str, url: str | None) -> None:
    assert parse_ready(line) == url


@pytest.mark.parametrize(
    ("os_release", "command"),
    [
        ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"', "sudo apt-get install libgomp1"),
        ('NAME="Linux Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"', "sudo apt-get install libgomp1"),
        ("ID=fedora\n", "sudo dnf install libgomp"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "sudo dnf install libgomp"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "sudo zypper install libgomp1"),
        ("ID=arch", "sudo pacman -S gcc-libs"),
        ("ID=alpine", "sudo apk add libgomp"),
        ("ID=plan9", "install the package that holds it (libgomp1 or libgomp)"),
        ("no equals sign", "install the package that holds it (libgomp1 or libgomp)"),
        ("", "install the package that holds it (libgomp1 or libgomp)"),
    ],
)
def test_libgomp_command(os_release: str, command: str) -> None:
    assert libgomp_command(os_release) == command


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "has_libgomp", lambda: False)
    if sys.platform == "linux":
        missing = BACKEND.missing()
        assert missing is not None
        assert "libgomp.so.1" in missing
        assert "\n" not in missing
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    missing = BACKEND.missing()
    assert missing is not None
    assert "not installed: pipx inject velollm xllamacpp" in missing


def test_defaults_are_those_of_ollama_without_what_only_a_server_has() -> None:
    defaults = BACKEND.default_knobs(FACTS)
    assert set(defaults) == BACKEND.knobs
    assert (defaults["threads"], defaults["slots"], defaults["context_tokens"]) == (4, 1, 4096)
    assert (defaults["load_mode"], defaults["speculation"], defaults["batch"]) == ("none", "none", 512)


def test_only_what_differs_from_the_defaults_is_rendered() -> None:
    defaults = BACKEND.default_knobs(FACTS)
    assert BACKEND.render(defaults, FACTS) == ()
    changed = {**defaults, "threads": 2, "slots": 4, "kv_type_k": None, "keep_alive_s": 60}
    assert BACKEND.render(changed, FACTS) == (
        Setting("environment", "LLAMA_ARG_THREADS", "2", "threads"),
        Setting("engine", "slots", "4", "slots"),
    )


class FakeTypes(enum.Enum):
    GGML_TYPE_F16 = 1
    GGML_TYPE_Q8_0 = 8


class FakeFlash(enum.Enum):
    LLAMA_FLASH_ATTN_TYPE_AUTO = -1
    LLAMA_FLASH_ATTN_TYPE_ENABLED = 1
    LLAMA_FLASH_ATTN_TYPE_DISABLED = 0


class FakeLoad(enum.Enum):
    LLAMA_LOAD_MODE_NONE = 0
    LLAMA_LOAD_MODE_MMAP = 1


class FakeSpeculation(enum.Enum):
    COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K = 5


def fake_module() -> Any:
    """The part of `xllamacpp` that is used; every parameter begins as ``"engine's"``."""

    def params() -> SimpleNamespace:
        names = ("n_batch", "n_ubatch", "cache_type_k", "cache_type_v", "flash_attn_type", "load_mode")
        inner = {name: SimpleNamespace(n_threads="engine's") for name in ("cpuparams", "cpuparams_batch")}
        return SimpleNamespace(
            model=SimpleNamespace(), speculative=SimpleNamespace(types="engine's"), **inner,
            **dict.fromkeys(names, "engine's"),
        )  # fmt: skip

    return SimpleNamespace(
        CommonParams=params,
        ggml_type=FakeTypes,
        llama_flash_attn_type=FakeFlash,
        llama_load_mode=FakeLoad,
        common_speculative_type=FakeSpeculation,
    )


def test_make_params() -> None:
    knobs = {
        "threads": 3,
        "context_tokens": 2048,
        "slots": 4,
        "batch": 256,
        "ubatch": 128,
        "kv_type_k": "q8_0",
        "kv_type_v": "f16",
        "flash_attention": "on",
        "load_mode": "mmap",
        "speculation": "ngram-map-k",
        "kv_unified": "on",
        "kv_offload": "off",
        "gpu_layers": 0,
        "cpu_moe_layers": 2,
        "cpu_ffn_layers": 1,
    }
    params = make_params(fake_module(), "/m.gguf", knobs, 8080)
    assert (params.model.path, params.hostnames, params.port) == ("/m.gguf", ["127.0.0.1"], 8080)
    assert (params.n_parallel, params.n_ctx, params.kv_unified) == (4, 8192, True)
    assert (params.n_gpu_layers, params.no_kv_offload) == (0, True)
    assert params.tensor_buft_overrides == (
        r"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU,blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU,"
        "blk[.](0)[.]ffn_(gate|up|down)(_shexp)?[.](weight|bias)=CPU"
    )
    assert (params.n_batch, params.n_ubatch) == (256, 128)
    assert params.cpuparams.n_threads == params.cpuparams_batch.n_threads == 3
    assert (params.cache_type_k, params.cache_type_v) == (FakeTypes.GGML_TYPE_Q8_0, FakeTypes.GGML_TYPE_F16)
    assert params.flash_attn_type is FakeFlash.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert params.load_mode is FakeLoad.LLAMA_LOAD_MODE_MMAP
    assert params.speculative.types == [FakeSpeculation.COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K]


def test_lengths_and_drafts_reach_the_engines_parameters() -> None:
    xllamacpp = importlib.import_module("xllamacpp")
    lengths = {"speculation_tokens": 16, "speculation_match": 8}
    params = make_params(xllamacpp, "/m.gguf", {"speculation": "ngram-mod", **lengths}, 0)
    found = params.speculative.ngram_mod
    assert (found.n_match, found.n_min, found.n_max) == (8, 12, 16)
    params = make_params(xllamacpp, "/m.gguf", {"speculation": "ngram-map-k4v", **lengths}, 0)
    assert (params.speculative.ngram_map_k4v.size_n, params.speculative.ngram_map_k4v.size_m) == (8, 16)
    draft = {"speculation": "draft-simple", "draft_model": "/d.gguf", "speculation_tokens": 5, "batch_threads": 3}
    params = make_params(xllamacpp, "/m.gguf", {**draft, "threads": 2, "repack": "off", "cache_reuse": 64}, 0)
    assert (params.speculative.draft.mparams.path, params.speculative.draft.n_max) == ("/d.gguf", 5)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (2, 3)
    assert (params.no_extra_bufts, params.n_cache_reuse) == (True, 64)


@pytest.mark.parametrize("knobs", [{}, {"threads": None, "slots": None, "speculation": "none"}])
def test_what_is_not_set_is_left_to_the_engine(knobs: dict[str, Any]) -> None:
    params = make_params(fake_module(), "/m.gguf", knobs, 0)
    assert (params.n_parallel, params.n_ctx) == (1, 0)
    left = (params.n_batch, params.n_ubatch, params.cache_type_k, params.cache_type_v, params.flash_attn_type)
    assert set(left) == {"engine's"}
    assert (params.load_mode, params.speculative.types, params.cpuparams.n_threads) == ("engine's",) * 3


def test_every_choice_of_a_knob_is_one_that_the_engine_knows() -> None:
    xllamacpp = importlib.import_module("xllamacpp")
    names = ("flash_attention", "load_mode", "speculation", "kv_type_k", "kv_type_v", "kv_unified", "kv_offload")
    for name in names:
        for choice in KNOBS[name].choices:
            make_params(xllamacpp, "/m.gguf", {name: choice}, 0)
