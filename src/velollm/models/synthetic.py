"""Models with random weights and a real shape, made on the spot: their speed is real, their text has no meaning.

The time that a token takes depends on the shape and the number format of the weights, not on their values, so such
a model shows what settings do before any model is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from velollm.config import ensure_dir
from velollm.errors import VeloError
from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.vocabulary import BEGIN_ID, END_ID, UNKNOWN_ID, make_vocabulary
from velollm.models.writer import NewTensor, Progress, WriteValue, data_bytes, render_header, write_file
from velollm.units import render_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Part of each made file's mark: a file of another recipe is made again.
_RECIPE = 1
_MARK = "velollm.synthetic"
_PIECE_BLOCKS = 1 << 17
_Q4_0_BLOCK, _Q4_0_BYTES = 32, 18
# A Q4_0 value is scale × (0 … 15 − 8); evenly drawn, and with the sign of the scale drawn too, its root mean square
# is scale × √21.5.
_Q4_0_RMS = 21.5**0.5
# Spread of the logits: the text varies, and no token stands above all others.
_LOGIT_RMS = 2.0
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The shape of a llama-architecture model; ``context_train`` is only declared, as nothing was trained."""

    name: str
    layers: int
    embedding_length: int
    heads: int
    kv_heads: int
    feed_forward_length: int
    vocab: int
    context_train: int
    seed: int = 1

    @property
    def kv_length(self) -> int:
        """Values of all KV heads together."""
        return self.embedding_length // self.heads * self.kv_heads


TINY = Shape("made-tiny", 4, 256, 8, 4, 768, 2048, 8192)
# TinyLlama 1.1B as its config.json gives it, but for the training context (2,048 there): the rules need room.
SHAPE_1B = Shape("made-1b", 22, 2048, 32, 4, 5632, 32000, 32768)


def ensure_model(shape: Shape, cache_dir: Path, *, progress: Progress | None = None) -> Path:
    """The made model of that shape under ``cache_dir``; it is made only when it is not there whole.

    ``progress`` is told bytes done and bytes in all. Two callers at once make it once: the second one waits.

    Raises:
        VeloError: the directory cannot be written, or the disk has not enough room.
    """
    path = ensure_dir(cache_dir) / f"{shape.name}.gguf"
    if _is_whole(path, shape):
        return path
    with _locked(cache_dir / f"{shape.name}.lock"):
        if not _is_whole(path, shape):
            _remove_leftovers(path)
            _check_space(path, shape)
            write_file(path, _header(shape), _tensors(shape), _Weights(shape).pieces, progress)
    return path


def estimate_file_bytes(shape: Shape) -> int:
    """Size of the made file, exact to the byte."""
    return len(_header(shape)) + data_bytes(_tensors(shape))


def made_model_facts(shape: Shape) -> ModelFacts:
    """Facts of the model that `ensure_model` would make, without making it: ``path`` is None.

    Its header is read back from a file of the full size that has no data in it.
    """
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        path = Path(directory) / f"{shape.name}.gguf"
        path.write_bytes(_header(shape))
        os.truncate(path, estimate_file_bytes(shape))
        facts = model_facts(read_gguf(path), shape.name)
    return facts.model_copy(update={"path": None})


def _mark(shape: Shape) -> str:
    """Text in the file's header that names its recipe and shape."""
    return f"recipe={_RECIPE} " + " ".join(f"{key}={value}" for key, value in asdict(shape).items())


def _is_whole(path: Path, shape: Shape) -> bool:
    try:
        if path.stat().st_size != estimate_file_bytes(shape):
            return False
        return read_gguf(path).metadata.get(_MARK) == _mark(shape)
    except (OSError, VeloError):
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove what a maker that was killed left behind; the lock is ours, so nobody writes it now."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _check_space(path: Path, shape: Shape) -> None:
    needed = estimate_file_bytes(shape)
    try:
        free = shutil.disk_usage(path.parent).free
        free += path.stat().st_size if path.exists() else 0
    except OSError:
        return
    if free < needed:
        raise VeloError(
            f"the made model needs {render_bytes(needed)}, and {path.parent} has {render_bytes(free)} free",
            "free some disk space, or set VELOLLM_HOME to a directory on a larger disk",
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that ends with this process, however it ends."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("ab"))
            _lock(file)
        except OSError as error:
            raise VeloError(
                f"cannot write and lock {path}: {error.strerror or error}",
                "set VELOLLM_HOME to a directory on a local disk that you may write to",
            ) from error
        yield


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


@lru_cache(maxsize=4)
def _header(shape: Shape) -> bytes:
    return render_header(_metadata(shape), _tensors(shape))


def _metadata(shape: Shape) -> list[tuple[str, WriteValue]]:
    words = make_vocabulary(shape.vocab)
    return [
        ("general.architecture", "llama"),
        ("general.name", shape.name),
        ("general.description", "Random weights made by VeloLLM to measure speed; its text has no meaning."),
        (_MARK, _mark(shape)),
        ("general.file_type", 2),
        ("general.quantization_version", 2),
        ("llama.block_count", shape.layers),
        ("llama.context_length", shape.context_train),
        ("llama.embedding_length", shape.embedding_length),
        ("llama.feed_forward_length", shape.feed_forward_length),
        ("llama.attention.head_count", shape.heads),
        ("llama.attention.head_count_kv", shape.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", shape.embedding_length // shape.heads),
        ("llama.rope.freq_base", 10000.0),
        ("llama.vocab_size", shape.vocab),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.tokens", words.tokens),
        ("tokenizer.ggml.scores", words.scores),
        ("tokenizer.ggml.token_type", words.kinds),
        ("tokenizer.ggml.bos_token_id", BEGIN_ID),
        ("tokenizer.ggml.eos_token_id", END_ID),
        ("tokenizer.ggml.unknown_token_id", UNKNOWN_ID),
        ("tokenizer.ggml.add_bos_token", True),
        ("tokenizer.ggml.add_eos_token", False),
        # Without it every text would gain a leading blank, and tokens to text and back would not be the same.
        ("tokenizer.ggml.add_space_prefix", False),
        ("tokenizer.chat_template", _CHAT_TEMPLATE),
    ]


def _tensors(shape: Shape) -> tuple[NewTensor, ...]:
    width, inner = shape.embedding_length, shape.feed_forward_length
    found = [
        NewTensor("token_embd.weight", (width, shape.vocab), "q4_0"),
        NewTensor("output.weight", (width, shape.vocab), "q4_0"),
        NewTensor("output_norm.weight", (width,), "f32"),
    ]
    matrices = {
        "attn_q": (width, width),
        "attn_k": (width, shape.kv_length),
        "attn_v": (width, shape.kv_length),
        "attn_output": (width, width),
        "ffn_gate": (width, inner),
        "ffn_up": (width, inner),
        "ffn_down": (inner, width),
    }
    for layer in range(shape.layers):
        found += [NewTensor(f"blk.{layer}.{name}.weight", (width,), "f32") for name in ("attn_norm", "ffn_norm")]
        found += [NewTensor(f"blk.{layer}.{name}.weight", size, "q4_0") for name, size in matrices.items()]
    return tuple(found)


class _Weights:
    """Random values for each tensor, the same for the same shape and seed, scaled so that activations stay near 1."""

    def __init__(self, shape: Shape) -> None:
        self._seed = shape.seed
        self._muted = make_vocabulary(shape.vocab).muted

    def pieces(self, index: int, tensor: NewTensor) -> Iterator[bytes]:
        """The data of the tensor with that index, a few MiB at a time."""
        if tensor.type_name == "f32":
            return iter([_ones(tensor.elements)])
        return self._blocks(index, tensor)

    def _blocks(self, index: int, tensor: NewTensor) -> Iterator[bytes]:
        import numpy as np

        source = np.random.PCG64(np.random.SeedSequence([self._seed, index]))
        scale = np.float16(_rms(tensor) / _Q4_0_RMS)
        blocks = tensor.elements // _Q4_0_BLOCK
        # Special and byte tokens get a logit of 0, which is seldom drawn: bytes alone are often no valid text.
        muted = self._muted * tensor.shape[0] // _Q4_0_BLOCK if tensor.name == "output.weight" else 0
        for start in range(0, blocks, _PIECE_BLOCKS):
            piece = _random_blocks(source, min(_PIECE_BLOCKS, blocks - start), scale)
            piece[: max(0, muted - start), :2] = 0
            yield piece.tobytes()


def _rms(tensor: NewTensor) -> float:
    """Root mean square of a tensor's values: 1 for embeddings, else 1/√(row length), which keeps the sum near 1."""
    if tensor.name == "token_embd.weight":
        return 1.0
    wanted = _LOGIT_RMS if tensor.name == "output.weight" else 1.0
    return float(wanted / tensor.shape[0] ** 0.5)


def _ones(count: int) -> bytes:
    import numpy as np

    return np.ones(count, dtype="<f4").tobytes()


def _random_blocks(source: np.random.PCG64, blocks: int, scale: np.float16) -> npt.NDArray[np.uint8]:
    """Q4_0 blocks (ggml-common.h, ``block_q4_0``): a float16 scale, here of either sign, then 32 values of 4 bits."""
    import numpy as np

    drawn = source.random_raw(blocks * 2 + -(-blocks // 8)).astype("<u8", copy=False)
    piece = np.empty((blocks, _Q4_0_BYTES), dtype=np.uint8)
    piece[:, 2:] = drawn[: blocks * 2].view(np.uint8).reshape(blocks, 16)
    signs = drawn[blocks * 2 :].view(np.uint8)[:blocks] & 0x80
    low, high = scale.astype("<f2").tobytes()
    piece[:, 0] = low
    piece[:, 1] = signs | high
    return piece
