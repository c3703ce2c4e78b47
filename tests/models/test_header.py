from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.models.files import header_of, write_gguf
from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.knobs import KnobValue
from velollm.models.gguf import GgufHeader, Passed, model_facts, read_gguf
from velollm.models.header import MAX_HEADER_BYTES, _Cursor, _DamagedError, _parse
from velollm.models.memory import estimate_memory, estimate_total_bytes
from velollm.models.synthetic import TINY, ensure_model
from velollm.models.writer import NewTensor, WriteValue, render_header
from velollm.units import MIB

SMALL: dict[str, WriteValue] = {
    "general.architecture": "gemma3",
    "general.alignment": 32,
    "gemma3.block_count": 4,
    "gemma3.embedding_length": 64,
    "gemma3.context_length": 4096,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": [2, 2, 1, 1],
    "gemma3.attention.sliding_window": 512,
    "gemma3.feed_forward_length": 128,
    "gemma3.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "bc", "", "déf"],
    "tokenizer.ggml.scores": [0.0, 1.0, 2.0, 3.0],
    "tokenizer.ggml.add_bos_token": True,
}
TENSORS = (NewTensor("token_embd.weight", (64, 4), "q4_0"), NewTensor("output_norm.weight", (64,), "f32"))
WHOLE = render_header(SMALL.items(), TENSORS)


def head(tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def key(name: str, kind: int, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + rest


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    header = header_of(tmp_path, SMALL, TENSORS)
    assert header.version == 3
    assert header.metadata["gemma3.attention.head_count_kv"] == (2, 2, 1, 1)
    assert header.metadata["tokenizer.ggml.tokens"] == Passed("string", 4)
    assert header.metadata["tokenizer.ggml.scores"] == (0.0, 1.0, 2.0, 3.0)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert [(t.name, t.shape, t.type_name, t.offset, t.size_bytes) for t in header.tensors] == [
        ("token_embd.weight", (64, 4), "q4_0", 0, 144),
        ("output_norm.weight", (64,), "f32", 160, 256),
    ]
    assert header.data_offset == len(WHOLE)


@pytest.mark.parametrize("name", ["tiny-python-5m-f16.gguf", "tiny-python-draft-f16.gguf"])
def test_agrees_with_the_gguf_package_on_real_models(name: str) -> None:
    from gguf import GGUFReader

    path = shared_dir("models") / name
    header, theirs = read_gguf(path), GGUFReader(path)
    assert [(t.name, t.shape, t.size_bytes, header.data_offset + t.offset) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.n_bytes), int(t.data_offset)) for t in theirs.tensors
    ]
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(header.metadata) == set(fields)
    for field_name, value in header.metadata.items():
        if isinstance(value, Passed):
            assert value.count == len(fields[field_name].data)
        elif not isinstance(value, tuple):
            assert value == fields[field_name].contents()


class CountingFile(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def big_vocabulary() -> bytes:
    tokens = [f"token-{number}" for number in range(131_072)]
    metadata: dict[str, WriteValue] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [1.0] * 131_072}
    return render_header([*metadata.items(), ("last", 7)], ())


def test_a_large_vocabulary_is_walked_in_blocks() -> None:
    data = big_vocabulary()
    file = CountingFile(data)
    header = _parse(_Cursor(file, 64 * MIB), Path("model.gguf"))
    assert header.metadata["tokenizer.ggml.tokens"] == Passed("string", 131_072)
    assert header.metadata["tokenizer.ggml.scores"] == Passed("float32", 131_072)
    assert header.metadata["last"] == 7
    assert file.reads <= len(data) // MIB + 3


def test_a_large_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(big_vocabulary())
    tracemalloc.start()
    try:
        read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()


def test_texts_longer_than_a_block_are_walked(tmp_path: Path) -> None:
    texts = ["x" * (2 * MIB), "y", "z" * (MIB - 7), ""]
    header = header_of(tmp_path, {"list": texts, "text": texts[0], "last": "here"})
    assert header.metadata == {"list": Passed("string", 4), "text": Passed("string", 2 * MIB), "last": "here"}


HUGE = 2**63
DAMAGED = {
    "empty": (b"", "is empty"),
    "short": (b"GG", "letters GGUF"),
    "text": (b"Once upon a time there was a model", "letters GGUF"),
    "only magic": (b"GGUF", "ends within its header"),
    "version 1": (head(version=1), "old format version 1"),
    "version 9": (head(version=9), "format version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many entries": (head(entries=HUGE), f"claims {HUGE} metadata entries"),
    "many tensors": (head(tensors=HUGE), f"claims {HUGE} tensors"),
    "entries missing": (head(entries=1), "ends within its header"),
    "tensors missing": (head(tensors=1), "ends within its header"),
    "long key": (head(entries=1) + struct.pack("<Q", 5000) + b"k" * 5000, "name of 5000 bytes"),
    "absurd key": (head(entries=1) + struct.pack("<Q", HUGE), "ends within its header"),
    "absurd text": (head(entries=1) + key("a", 8, struct.pack("<Q", 2**64 - 1)), "ends within its header"),
    "absurd list": (head(entries=1) + key("a", 9, struct.pack("<IQ", 4, HUGE)), "ends within its header"),
    "absurd texts": (head(entries=1) + key("a", 9, struct.pack("<IQ", 8, HUGE)), "more than the file holds"),
    "absurd text in a list": (
        head(entries=1) + key("a", 9, struct.pack("<IQQ", 8, 2, 2**64 - 9)) + bytes(64),
        "ends within its header",
    ),
    "list of lists": (head(entries=1) + key("a", 9, struct.pack("<IQ", 9, 1)), "list of lists"),
    "unknown type": (head(entries=1) + key("a", 77), "unknown type 77"),
    "unknown list type": (head(entries=1) + key("a", 9, struct.pack("<IQ", 77, 5000)), "unknown type 77"),
    "same key twice": (head(entries=2) + key("a", 0, b"\1") * 2, "twice"),
    "alignment": (head(entries=1) + key("general.alignment", 4, struct.pack("<I", 33)), "alignment is 33"),
    "dimensions": (head(tensors=1) + key("t", 9), "9 dimensions"),
    "absurd shape": (head(tensors=1) + key("t", 2, struct.pack("<QQIQ", HUGE, HUGE, 0, 0)), "absurd shape"),
    "broken rows": (head(tensors=1) + key("t", 1, struct.pack("<QIQ", 33, 2, 0)), "multiple of 32"),
    "no data": (head(tensors=1) + key("t", 1, struct.pack("<QIQ", 32, 0, 0)), "cut off"),
    "absurd offset": (head(tensors=1) + key("t", 1, struct.pack("<QIQ", 32, 99, HUGE)), "cut off"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named_in_one_line(name: str, tmp_path: Path) -> None:
    data, words = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(VeloError) as caught:
        read_gguf(path)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_file_cut_off_in_its_data(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", SMALL.items(), TENSORS)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(VeloError, match="cut off"):
        read_gguf(path)


def test_a_header_longer_than_allowed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", SMALL.items(), TENSORS)
    with pytest.raises(VeloError, match="header is longer than 100 B"):
        read_gguf(path, max_header_bytes=100)


def test_more_metadata_than_is_kept(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="more metadata than any model needs"):
        header_of(tmp_path, {f"key-{number}": "x" * 16_000 for number in range(600)})


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "absent.gguf", "No such file"),
        (tmp_path / "file" / "model.gguf", "Not a directory"),
        (tmp_path / "pipe", "no regular file"),
    ):
        with pytest.raises(VeloError, match=words):
            read_gguf(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", SMALL.items())
    path.chmod(0)
    with pytest.raises(VeloError, match="Permission denied"):
        read_gguf(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


def survives(path: Path, data: bytes, size: int) -> None:
    """Only a `VeloError` may come out of reading these bytes, and nothing at all of what is built on them."""
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    try:
        facts = model_facts(read_gguf(path), "fuzzed")
    except VeloError:
        return
    estimate_total_bytes(facts, {"context_tokens": 4096, "slots": 2})


FLIPS = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8)


# Hypothesis ends an example that takes longer than its deadline, so time is bounded too.
@settings(max_examples=400, deadline=500)
@given(flips=FLIPS)
def test_flipped_bytes(scratch: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in flips:
        data[at] = value
    survives(scratch, bytes(data), len(WHOLE) + 4096)


@settings(max_examples=200, deadline=500)
@given(at=st.integers(0, len(WHOLE) - 8), number=st.sampled_from([0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
@example(at=8, number=2**64 - 1)
def test_absurd_numbers(scratch: Path, at: int, number: int) -> None:
    data = WHOLE[:at] + struct.pack("<Q", number) + WHOLE[at + 8 :]
    survives(scratch, data, len(WHOLE) + 4096)


@settings(max_examples=100, deadline=500)
@given(size=st.integers(0, len(WHOLE)))
def test_cut_off_anywhere(scratch: Path, size: int) -> None:
    survives(scratch, WHOLE[:size], size)


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    path = ensure_model(TINY, tmp_path_factory.mktemp("made"))
    return path.read_bytes()[: read_gguf(path).data_offset], path.stat().st_size


@settings(max_examples=150, deadline=500)
@given(data=st.data())
def test_a_whole_vocabulary_with_flipped_bytes(
    scratch: Path, tiny_bytes: tuple[bytes, int], data: st.DataObject
) -> None:
    header, size = tiny_bytes
    mutated = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    survives(scratch, bytes(mutated), data.draw(st.sampled_from([size, len(header), len(header) // 2])))


NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
HYBRID: dict[str, WriteValue] = {
    "general.architecture": "granitehybrid",
    "granitehybrid.block_count": 2,
    "granitehybrid.embedding_length": 64,
    "granitehybrid.context_length": 4096,
    "granitehybrid.attention.head_count": 4,
    "granitehybrid.attention.head_count_kv": [0, 2],
    "granitehybrid.feed_forward_length": 128,
    "granitehybrid.expert_count": 4,
    "granitehybrid.expert_used_count": 2,
    "granitehybrid.expert_feed_forward_length": 32,
    "granitehybrid.nextn_predict_layers": 0,
    "granitehybrid.ssm.conv_kernel": 4,
    "granitehybrid.ssm.inner_size": 128,
    "granitehybrid.ssm.state_size": 16,
    "granitehybrid.ssm.time_step_rank": 4,
    "granitehybrid.ssm.group_count": 1,
    "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
}
HYBRID_TENSORS = (
    *TENSORS,
    NewTensor("blk.0.ssm_in.weight", (64, 296), "q8_0"),
    NewTensor("blk.1.ffn_gate_exps.weight", (64, 32, 4), "q4_0"),
    NewTensor("blk.1.ffn_gate_inp.weight", (64, 4), "f32"),
)


def mutated(source: random.Random, data: bytes) -> bytes:
    """One variant: bytes flipped, numbers replaced, pieces cut out, doubled or moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at, kind = source.randrange(len(out)), source.randrange(6)
        if kind == 0:
            out[at] = source.randrange(256)
        elif kind == 1:
            out[at : at + 8] = struct.pack("<Q", source.choice(NUMBERS))
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I", source.choice(NUMBERS) % 2**32)
        elif kind == 3:
            del out[at : at + source.randint(1, 16)]
        elif kind == 4:
            out[at:at] = out[max(0, at - source.randint(1, 32)) : at]
        else:
            del out[at:]
        if not out:
            return b""
    return bytes(out)


def test_ten_thousand_damaged_headers_take_neither_memory_nor_a_traceback() -> None:
    source = random.Random(20261125)
    whole = (WHOLE, render_header(HYBRID.items(), HYBRID_TENSORS))
    knobs: dict[str, KnobValue] = {"context_tokens": 4096, "slots": 2, "kv_type_k": "q8_0", "kv_type_v": "q8_0"}
    refused = estimated = 0
    for number in range(10_000):
        data = mutated(source, whole[number % 2]) + bytes(source.choice([0, 64, 65_536]))
        # Tracing costs time: every tenth variant is watched.
        if number % 10 == 0:
            tracemalloc.start()
        try:
            facts = model_facts(_read_memory(data), "fuzzed")
            estimated += estimate_memory(facts, knobs, gpus=("GPU",)) is not None
        except VeloError as error:
            refused += 1
            assert "\n" not in error.message
        finally:
            if tracemalloc.is_tracing():
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 16 * MIB
    # Both ends are reached: files that are refused, and damage that leaves a model.
    assert refused > 5000
    assert estimated > 100


def _read_memory(data: bytes) -> GgufHeader:
    try:
        return _parse(_Cursor(io.BytesIO(data), MAX_HEADER_BYTES), Path("model.gguf"))
    except _DamagedError as error:
        raise VeloError(str(error)) from error
