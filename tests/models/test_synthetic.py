from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import threading
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from velollm.errors import VeloError
from velollm.models.filling import Filling
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.synthetic import (
    SHAPE_1B,
    TINY,
    Recipe,
    Shape,
    draw_blueprint,
    ensure_model,
    estimate_file_bytes,
    write_model,
)
from velollm.units import MIB

MEDIUM = replace(TINY, name="made-medium", embedding_length=1024, feed_forward_length=4096, layers=4)


def only_model_and_lock(directory: Path, shape: Shape = TINY) -> bool:
    return {path.name for path in directory.iterdir()} <= {f"{shape.name}.gguf", f"{shape.name}.lock"}


def test_the_file_is_as_announced(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = ensure_model(TINY, tmp_path / "new" / "models", progress=lambda done, total: seen.append((done, total)))
    size = estimate_file_bytes(TINY)
    assert path.stat().st_size == size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert only_model_and_lock(path.parent)
    facts = model_facts(read_gguf(path), TINY.name)
    assert (facts.architecture, facts.layers, facts.embedding_length) == ("llama", 4, 256)
    assert (facts.heads, facts.kv_heads, facts.key_length) == ((8,) * 4, (4,) * 4, 32)
    assert (facts.vocab, facts.context_train, facts.file_type) == (2048, 8192, "Q4_0")
    assert facts.has_chat_template is True
    assert set(facts.bytes_by_type) == {"q4_0", "f32"}


def test_the_1b_shape_is_about_620_mb() -> None:
    assert 615e6 < estimate_file_bytes(SHAPE_1B) < 625e6


def test_weights_are_scaled_and_the_file_does_not_compress(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path = ensure_model(TINY, tmp_path)
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith("norm.weight"):
            assert (tensor.data == 1).all()
            continue
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == "output.weight":
            assert (values[:259] == 0).all()
            values = values[259:]
        wanted = {"token_embd.weight": 1.0, "output.weight": 2 / math.sqrt(256)}
        assert values.std() == pytest.approx(wanted.get(tensor.name, 1 / math.sqrt(values.shape[1])), rel=0.02)
        assert abs(values.mean()) < 0.02 * values.std()
    data = path.read_bytes()[-MIB:]
    assert len(zlib.compress(data)) > 0.9 * len(data)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = ensure_model(TINY, tmp_path / "a").read_bytes()
    assert ensure_model(TINY, tmp_path / "b").read_bytes() == first
    assert ensure_model(TINY, tmp_path / "c", Recipe(pure=True, seed=2)).read_bytes() != first


def test_pieces_of_one_tensor_differ() -> None:
    blueprint = draw_blueprint(MEDIUM)
    filling = Filling(blueprint.values, blueprint.tensors)
    index, tensor = next((i, t) for i, t in enumerate(blueprint.tensors) if t.name == "blk.0.ffn_gate.weight")
    pieces = [bytes(piece) for piece in filling.pieces(index, tensor)]
    assert sum(map(len, pieces)) == tensor.size_bytes
    assert len(set(pieces)) == len(pieces)


def test_a_whole_file_is_used_again(tmp_path: Path) -> None:
    path = ensure_model(TINY, tmp_path)
    before = path.stat().st_mtime_ns
    assert ensure_model(TINY, tmp_path, progress=lambda *_: pytest.fail("made again")) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "other seed", "header", "empty"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    path = ensure_model(TINY, tmp_path, Recipe(pure=True, seed=9 if damage == "other seed" else 1))
    if damage == "cut":
        os.truncate(path, 100_000)
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "header":
        with path.open("r+b") as file:
            file.write(b"\0" * 64)
    ensure_model(TINY, tmp_path)
    assert path.read_bytes() == ensure_model(TINY, tmp_path / "fresh").read_bytes()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    ensure_model(TINY, tmp_path)  # numpy and the tables are loaded before memory is looked at
    tracemalloc.start()
    try:
        path = ensure_model(MEDIUM, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 30 * MIB
    assert peak < 20 * MIB


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(VeloError, match="cannot write the model") as caught:
            ensure_model(TINY, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [f"{TINY.name}.lock"]


def test_too_little_space_is_said_before_writing(tmp_path: Path) -> None:
    vast = replace(TINY, layers=1000, embedding_length=65536, feed_forward_length=1 << 20)
    with pytest.raises(VeloError, match=r"needs \d+ GiB, and .* has .* free"):
        write_model(tmp_path / "vast.gguf", draw_blueprint(vast))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VeloError, match="cannot make the directory"):
        ensure_model(TINY, tmp_path / "file" / "models")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_model(TINY, tmp_path, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [f"{TINY.name}.lock"]


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".{TINY.name}.gguf.99999.part"
    left.write_bytes(b"half")
    ensure_model(TINY, tmp_path)
    assert not left.exists()


def test_two_makers_make_it_once(tmp_path: Path) -> None:
    makers: set[str] = set()
    both = threading.Barrier(2)

    def make(name: str) -> None:
        both.wait()
        ensure_model(MEDIUM, tmp_path, progress=lambda *_: makers.add(name))

    threads = [threading.Thread(target=make, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(makers) == 1
    assert only_model_and_lock(tmp_path, MEDIUM)


def _make_until_killed(directory: Path, ready: int) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            os.write(ready, b"x")
            signal.pause()

    ensure_model(TINY, directory, progress=stop)


def test_a_killed_maker_leaves_nothing_and_no_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_make_until_killed, args=(tmp_path, writer))
    child.start()
    try:
        assert os.read(reader, 1) == b"x"
    finally:
        child.kill()
        child.join()
        os.close(reader)
        os.close(writer)
    if hasattr(os, "O_TMPFILE"):
        assert [path.name for path in tmp_path.iterdir()] == [f"{TINY.name}.lock"]
    ensure_model(TINY, tmp_path)
    assert only_model_and_lock(tmp_path)
