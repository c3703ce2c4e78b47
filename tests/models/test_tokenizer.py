"""The rule by which the engine takes a draft's vocabulary, over headers that were written for it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.files import write_gguf
from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.models.header import read_gguf
from velollm.models.tokenizer import (
    FIRST_COMPARED,
    MAX_SIZE_DIFFERENCE,
    TOKENS,
    Tokenizer,
    compare_tokenizers,
    fingerprint,
    fits_fingerprint,
    parse_with_tokens,
    read_tokenizer,
    tokenizer_of,
)
from velollm.models.writer import WriteValue, render_header

PLAIN = Tokenizer("BPE", False, 11, False, 11, tuple(b"t%d" % place for place in range(300)))


def tokenizer(path: Path, values: Mapping[str, WriteValue], size: int = 20) -> Tokenizer:
    """What is read from a file with these ``tokenizer.ggml`` values."""
    metadata: dict[str, WriteValue] = {"general.architecture": "llama", TOKENS: [f"t{place}" for place in range(size)]}
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    return read_tokenizer(write_gguf(path / "t.gguf", metadata.items()))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model": "llama"}, ("SPM", True, 1, False, 2)),
        ({"model": "gpt2", "pre": "qwen2"}, ("BPE", False, 11, False, 11)),
        ({"model": "gpt2", "pre": "llama-bpe"}, ("BPE", True, 11, False, 11)),
        ({"model": "gpt2", "pre": "glm4"}, ("BPE", False, None, False, 11)),
        ({"model": "gpt2", "pre": "tekken", "add_bos_token": False}, ("BPE", False, 11, False, 11)),
        ({"model": "gemma4", "add_bos_token": False}, ("BPE", True, None, False, None)),
        ({"model": "t5"}, ("UGM", False, None, True, 1)),
        ({"model": "bert"}, ("WPM", True, None, False, None)),
        ({"model": "llama", "bos_token_id": 7, "eos_token_id": 99}, ("SPM", True, 7, False, 2)),
        ({"model": "rwkv", "add_eos_token": True, "eos_token_id": 3}, ("RWKV", False, None, True, 3)),
    ],
)
def test_a_header_means_what_the_engine_makes_of_it(
    tmp_path: Path, values: dict[str, WriteValue], expected: tuple[object, ...]
) -> None:
    found = tokenizer(tmp_path, values)
    assert (found.kind, found.add_bos, found.bos, found.add_eos, found.eos) == expected
    assert found.tokens[19] == b"t19"


def test_an_empty_token_has_a_name_and_a_zero_byte_ends_one(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", {"tokenizer.ggml.model": "gpt2", TOKENS: ["a", "", "x\0y"]}.items())
    assert read_tokenizer(path).tokens == (b"a", b"[EMPTY_1]", b"x")


@pytest.mark.parametrize("values", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "new-kind"}])
def test_without_a_known_tokenizer_it_says_so(tmp_path: Path, values: dict[str, WriteValue]) -> None:
    path = write_gguf(tmp_path / "t.gguf", values.items())
    with pytest.raises(VeloError, match="tokenizer"):
        read_tokenizer(path)


def test_each_difference_is_named() -> None:
    longer = PLAIN.tokens + tuple(b"more%d" % place for place in range(MAX_SIZE_DIFFERENCE))
    changed = (*PLAIN.tokens[:9], b"other", *PLAIN.tokens[10:])
    low = (b"unlike",) * FIRST_COMPARED + PLAIN.tokens[FIRST_COMPARED:]
    assert compare_tokenizers(PLAIN, PLAIN).fits
    assert compare_tokenizers(PLAIN, replace(PLAIN, tokens=longer)).fits
    assert compare_tokenizers(PLAIN, replace(PLAIN, tokens=low)).fits
    assert compare_tokenizers(PLAIN, replace(PLAIN, bos=3, eos=4)).fits  # not added, so not compared
    cases = {
        "kind": replace(PLAIN, kind="SPM"),
        "bos": replace(PLAIN, add_bos=True),
        "eos": replace(PLAIN, add_eos=True),
        "size": replace(PLAIN, tokens=(*longer, b"one")),
        "token": replace(PLAIN, tokens=changed),
    }
    for differs, draft in cases.items():
        found = compare_tokenizers(PLAIN, draft)
        assert (found.fits, found.differs) == (False, differs)
        assert compare_tokenizers(draft, PLAIN).differs == differs
    assert compare_tokenizers(PLAIN, cases["token"]).token == 9
    assert compare_tokenizers(PLAIN, cases["token"]).reason == "token 9 is 'other' in the draft and 't9' in the model"
    ours, theirs = replace(PLAIN, add_bos=True, bos=1), replace(PLAIN, add_bos=True, bos=2)
    assert compare_tokenizers(ours, theirs).reason == "bos is token 2 in the draft and 1 in the model"


@given(st.lists(st.binary(max_size=3), max_size=40), st.lists(st.binary(max_size=3), max_size=40))
def test_a_fingerprint_agrees_with_the_rule_or_says_nothing(one: list[bytes], two: list[bytes]) -> None:
    main, draft = (replace(PLAIN, tokens=tuple(text.replace(b"\0", b"0") for text in texts)) for texts in (one, two))
    told = fits_fingerprint(main, fingerprint(draft))
    assert told is None if len(two) > len(one) else told == compare_tokenizers(main, draft).fits


def test_a_fingerprint_that_is_none_tells_nothing() -> None:
    assert fits_fingerprint(PLAIN, "sha256:1234") is None
    assert fits_fingerprint(PLAIN, fingerprint(replace(PLAIN, tokens=PLAIN.tokens[:100]))) is False
    assert fits_fingerprint(PLAIN, fingerprint(replace(PLAIN, add_eos=True))) is False


@given(st.lists(st.text(max_size=20), max_size=60))
def test_kept_texts_are_the_written_ones(texts: list[str]) -> None:
    data = render_header({TOKENS: texts, "general.name": "after"}.items(), ()) if texts else b""
    if not data:
        return
    header = parse_with_tokens(io.BytesIO(data), Path("x"))
    assert header.texts[TOKENS] == tuple(text.encode() for text in texts)
    assert header.metadata["general.name"] == "after"


def test_texts_that_reach_over_a_block_are_whole() -> None:
    texts = [str(place % 10) * (place % 2000) for place in range(3000)]
    header = parse_with_tokens(io.BytesIO(render_header({TOKENS: texts}.items(), ())), Path("x"))
    assert header.texts[TOKENS] == tuple(text.encode() for text in texts)


@pytest.mark.parametrize("cut", [0, 4, 20, 60, 200])
def test_a_head_that_ends_early_is_damaged(cut: int) -> None:
    data = render_header({TOKENS: ["word"] * 100}.items(), ())
    with pytest.raises(VeloError, match="not a usable GGUF"):
        parse_with_tokens(io.BytesIO(data[:cut]), Path("x"))


def test_the_real_pair_fits() -> None:
    folder = shared_dir("models")
    main, draft = (folder / f"tiny-python-{name}-f16.gguf" for name in ("5m", "draft"))
    assert compare_tokenizers(read_tokenizer(main), read_tokenizer(draft)).fits
    assert len(tokenizer_of(read_gguf(main, texts=frozenset({TOKENS}))).tokens) == 2048
