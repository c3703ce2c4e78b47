from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.simulated import count_words
from velollm.bench.workload import (
    PROMPTS_PER_ROUND,
    USERS,
    load_workload,
    make_prompt,
    parse_workload,
    read_workload,
    workload_names,
)
from velollm.config import data_dir
from velollm.errors import EXIT_USAGE, VeloError

NAMES = (
    *("agent", "agent-loop", "batch", "chat", "code", "conversation"),
    *("neighbour", "retrieval", "structured", "team", "titles"),
)
TOKENIZERS: dict[str, Callable[[str], int]] = {
    "words": count_words,
    "letters": len,
    "quarters": lambda text: 1 + len(text) // 4,
}
SMALL = """
summary: a small one
prompt_tokens: 32
decode_tokens: 8
aggregate_prompt_tokens: 16
aggregate_decode_tokens: 8
rounds: 5
repeat_ratio: 0.0
opening: "${opening} ${serial}."
ask: "Well?"
notes: ["The ${thing} is near the ${thing2}."]
words: {thing: [lamp, door]}
"""


def test_the_shipped_workloads_load() -> None:
    assert workload_names() == NAMES
    for name in NAMES:
        workload = load_workload(name)
        assert workload.name == name
        assert workload.rounds >= 5


def test_profiles_name_workloads_that_exist() -> None:
    profiles = sorted((data_dir("configs") / "profiles").glob("*.yaml"))
    if not profiles:
        pytest.skip("no profiles in this tree")
    for path in profiles:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["workload"] in NAMES, path


@pytest.mark.parametrize("name", ["chatt", "", "../chat", "chat.yaml", "CHAT", "a" * 200])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(VeloError) as caught:
        load_workload(name)
    assert caught.value.exit_code == EXIT_USAGE
    assert "chat" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (("summary: a small one", "summary: [1"), "damaged"),
        (("prompt_tokens: 32", "prompt_tokens: many"), "prompt_tokens"),
        (("prompt_tokens: 32", "prompt_tokens: -1"), "prompt_tokens"),
        (("rounds: 5", "rounds: 4"), "rounds"),
        (("rounds: 5", "rounds: 5\nspeed: 3"), "speed"),
        (("repeat_ratio: 0.0", "repeat_ratio: 0.5"), "repeated"),
        (("${thing} is", "${what} is"), "what"),
        (("[lamp, door]", "[]"), "thing"),
        (('ask: "Well?"\n', ""), "ask"),
        (('"${opening} ${serial}."', '"First: ${opening}"'), "opening"),
    ],
)
def test_a_damaged_workload_says_where(change: tuple[str, str], where: str) -> None:
    assert parse_workload("small", SMALL).name == "small"
    assert change[0] in SMALL
    with pytest.raises(VeloError) as caught:
        parse_workload("small", SMALL.replace(*change))
    assert where in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "- 1", "hello", b"\xff\xfe\x00", "[" * 5000, "a: &a [*a]"])
def test_no_workload_at_all(text: str | bytes) -> None:
    with pytest.raises(VeloError):
        parse_workload("small", text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VeloError):
        read_workload(tmp_path / "none.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (2 << 20))
    with pytest.raises(VeloError, match="too large"):
        read_workload(big)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [16, 64, 256, 1024, 4096])
def test_prompts_are_as_long_as_wanted(name: str, target: int, tokenizer: str) -> None:
    calls = 0

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        return TOKENIZERS[tokenizer](text)

    prompt = make_prompt(load_workload(name), 3, 1, target, count)
    # One word more or less is at most 20 letters off.
    assert abs(TOKENIZERS[tokenizer](prompt) - target) <= max(0.05 * target, 20 if tokenizer == "letters" else 6)
    assert calls <= 8


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 200), st.integers(0, PROMPTS_PER_ROUND - 1), st.integers(16, 600))
def test_a_prompt_is_always_the_same(name: str, round_index: int, index: int, target: int) -> None:
    workload = load_workload(name)
    one, other = (make_prompt(workload, round_index, index, target, count_words) for _ in range(2))
    assert one == other
    assert one.strip()
    assert "${" not in one


@pytest.mark.parametrize("name", NAMES)
def test_no_two_prompts_of_a_run_share_a_beginning(name: str) -> None:
    workload = load_workload(name)
    prompts = [
        make_prompt(workload, round_index, index, 96, count_words)
        for round_index in range(-1, workload.rounds)
        for index in range(USERS + 1)
    ]
    assert len({prompt.split()[0] for prompt in prompts}) == len(prompts)
    # Those that follow one another differ from the first letter on.
    assert all(one[0] != other[0] for one, other in pairwise(prompts))


def test_another_seed_gives_other_prompts() -> None:
    workload = load_workload("chat")
    one, other = (make_prompt(workload, 0, 0, 96, count_words, seed=seed) for seed in (0, 1))
    assert one.split()[0] != other.split()[0]


def test_a_longer_prompt_goes_on_with_other_words() -> None:
    prompt = make_prompt(load_workload("chat"), 0, 0, 2000, count_words)
    sentences = [sentence.strip() for sentence in prompt.split(".") if len(sentence) > 60]
    assert len(set(sentences)) >= 0.8 * len(sentences), "the text loops"


def test_an_edit_task_holds_the_file_that_is_asked_for_again() -> None:
    prompt = make_prompt(load_workload("code"), 1, 0, 512, count_words)
    before, file, after = prompt.split("```")[0:3]
    assert file.startswith("python\n")
    assert count_words(file) > 0.6 * count_words(prompt)
    assert "def " in file
    noun = before.split("_store.py")[0].rsplit("`", 1)[1]
    assert noun in file
    assert f"Rename `{noun}`" in after
    assert prompt.endswith("```python\n")


def test_words_of_one_list_differ_within_a_piece() -> None:
    prompt = make_prompt(parse_workload("small", SMALL), 0, 0, 200, count_words)
    assert "lamp is near the lamp" not in prompt
    assert "door is near the lamp" in prompt
