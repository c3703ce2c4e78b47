from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import read_log
from velollm.backends.ollama_log import parse_failure, parse_listening, parse_loads, parse_truncations

USUAL = {
    "threads": 2,
    "slots": 1,
    "context_tokens": 2048,
    "batch": 512,
    "ubatch": 512,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "flash_attention": "auto",
    "kv_unified": "off",
}
PIECES = st.sampled_from(
    [
        'time=x msg="starting llama-server" cmd="/a/llama-server --model \\"/m m\\" --port 12"\n',
        'time=x msg="starting llama-server" cmd="unclosed \'quote --port"\n',
        "system_info: n_threads = ",
        "n_slots = 9\n",
        "llama_kv_cache: size = 1, K (q8_0): V (f16):\n",
        "error: ",
        'msg="truncating input prompt" limit=258 prompt=6011 keep=4 new=258\n',
        "adding speculative implementation 'ngram-mod'\n",
    ]
)


@pytest.mark.parametrize(
    ("log", "address"),
    [
        ("start-load-reload", "127.0.0.1:11434"),
        ("child", "127.0.0.1:60251"),
        ("env-bad-value", "127.0.0.1:51863"),
        ("speculation-ngram-and-draft", "127.0.0.1:36815"),
    ],
)
def test_where_it_listens(log: str, address: str) -> None:
    assert [found for line in read_log(log).splitlines() if (found := parse_listening(line))] == [address]


@pytest.mark.parametrize("version", ["0.0.0", "0.33.0-rc2", ""])
def test_listening_of_any_version(version: str) -> None:
    assert parse_listening(f'time=x level=INFO msg="Listening on [::1]:11434 (version {version})"') == "[::1]:11434"
    assert parse_listening("Listening somewhere") is None


def test_each_load_with_what_it_runs() -> None:
    loads = parse_loads(read_log("start-load-reload"))
    assert [load.values["context_tokens"] for load in loads[:4]] == [2048, 1024, 2048, 1024]
    assert loads[0].values == USUAL
    assert [load.values["batch"] for load in loads[:4]] == [512, 512, 512, 256]
    assert loads[3].flag("-b") == "256"
    assert loads[0].url == "http://127.0.0.1:36939"
    assert loads[0].flag("--no-such-flag") is None
    assert all(load.speculation == () for load in loads)


def test_a_batch_above_the_context_is_cut() -> None:
    loads = parse_loads(read_log("queue"))
    assert [(load.flag("-c"), load.flag("-b"), load.values["batch"]) for load in loads[:2]] == [
        ("256", "512", 256),
        ("448", "512", 448),
    ]


def test_speculation_that_runs() -> None:
    (load,) = parse_loads(read_log("speculation-ngram-and-draft"))
    assert load.speculation == ("ngram-mod", "draft-simple")
    assert load.values["context_tokens"] == 4096
    assert load.flag("-np") == "1"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("env-bad-value", 'error while handling environment variable "LLAMA_ARG_THREADS": stoi'),
        (
            "env-removed-name",
            (
                'error while handling environment variable "LLAMA_ARG_DRAFT_MAX": the argument has been removed. '
                "use --spec-draft-n-max or --spec-ngram-mod-n-max"
            ),
        ),
        ("kv-quantized-without-flash", "quantized V cache requires flash_attn to be enabled"),
        ("kv-type-unknown", 'error while handling argument "--cache-type-k": Unsupported cache type: q9'),
        ("spec-mtp-without-heads", "context type MTP requested but model doesn't contain MTP layers"),
    ],
)
def test_why_a_load_failed(log: str, reason: str) -> None:
    text = read_log(log)
    assert parse_failure(text) == reason
    (load,) = parse_loads(text)
    assert "slots" not in load.values


@pytest.mark.parametrize("log", ["start-load-reload", "child", "queue", "speculation-ngram-and-draft"])
def test_no_failure_where_everything_loaded(log: str) -> None:
    assert parse_failure(read_log(log)) is None


def test_an_assertion_is_why_a_load_failed() -> None:
    text = (
        "llama_init_from_model: failed to initialize the context: dflash requires ctx_other to be set "
        "(this warning is normal during memory fitting)\n"
        "/src/ggml/src/ggml.c:2263: GGML_ASSERT(ggml_can_repeat(b, a)) failed\n"
    )
    assert parse_failure(text) == "GGML_ASSERT(ggml_can_repeat(b, a)) failed"
    assert parse_failure(text.splitlines()[0]) is None


def test_truncated_prompts() -> None:
    line = 'time=x level=WARN source=runner.go:1 msg="truncating input prompt" limit=258 prompt=6011 keep=4 new=258\n'
    assert parse_truncations(f"a\n{line}b\n{line}") == [(258, 6011, 258)] * 2
    assert parse_truncations(read_log("child")) == []


@given(st.lists(PIECES | st.text(max_size=30), max_size=12))
def test_no_log_raises(pieces: list[str]) -> None:
    text = "".join(pieces)
    for load in parse_loads(text):
        assert load.url is None or load.url.startswith("http://127.0.0.1:")
    assert parse_failure(text) is None or len(parse_failure(text) or "") <= 300
    parse_truncations(text)
    parse_listening(text)
