"""Models with random weights and a real shape, made on the spot: their speed is real, their text has no meaning.

The time that a token takes depends on the shape and the number format of the weights, not on their values, so such
a model shows what settings do before any model is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO

from velollm.config import ensure_dir
from velollm.errors import VeloError
from velollm.facts import ModelFacts
from velollm.models.architectures import find_architecture
from velollm.models.architectures.base import Key, Part
from velollm.models.filling import HEADS_EMBEDDING, HEADS_JOIN, Filling, Gains, Values
from velollm.models.gguf import model_facts
from velollm.models.header import GgufHeader, read_gguf
from velollm.models.quantization import choose_types, find_quantization
from velollm.models.shape import Rope, Shape
from velollm.models.succession import Succession, check_succession
from velollm.models.vocabulary import BEGIN_ID, END_ID, UNKNOWN_ID, Vocabulary, make_vocabulary
from velollm.models.writer import NewTensor, Progress, WriteValue, data_bytes, render_header, write_file
from velollm.units import render_bytes

__all__ = [
    "SHAPE_1B",
    "TINY",
    "Blueprint",
    "Recipe",
    "Shape",
    "draw_blueprint",
    "ensure_model",
    "estimate_file_bytes",
    "made_model_facts",
    "write_model",
]

# Part of each made file's mark: a file of another recipe is made again.
_RECIPE = 2
_MARK = "velollm.synthetic"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

TINY = Shape("made-tiny", 4, 256, 8, 4, 768, 2048, 8192)
# TinyLlama 1.1B as its config.json gives it, but for the training context (2,048 there): the rules need room.
SHAPE_1B = Shape("made-1b", 22, 2048, 32, 4, 5632, 32000, 32768)


@dataclass(frozen=True)
class Recipe:
    """How a shape becomes a file: the mixture of number formats, the seed, and the succession of its text if any."""

    quantization: str = "q4_0"
    pure: bool = False
    seed: int = 1
    succession: Succession | None = None


# Every matrix in q4_0, which mixtures do not do.
PURE_Q4_0 = Recipe(pure=True)


@dataclass(frozen=True, eq=False)
class Blueprint:
    """All that a made file will be: its metadata with the mark, its tensors, and how they are filled."""

    name: str
    metadata: tuple[Key, ...]
    tensors: tuple[NewTensor, ...]
    values: Values

    @cached_property
    def mark(self) -> str:
        """Text that names the recipe and this very blueprint."""
        plain = [item for item in self.metadata if not item[0].startswith("tokenizer.")]
        told = repr((plain, self.tensors, self.values)).encode()
        return f"recipe={_RECIPE} sha256={hashlib.sha256(told).hexdigest()}"

    @cached_property
    def header(self) -> bytes:
        """The bytes of the file before its tensor data."""
        return render_header([*self.metadata, (_MARK, self.mark)], self.tensors)

    @property
    def file_bytes(self) -> int:
        """Size of the file, exact to the byte."""
        return len(self.header) + data_bytes(self.tensors)


@lru_cache(maxsize=4)
def draw_blueprint(shape: Shape, recipe: Recipe = PURE_Q4_0) -> Blueprint:
    """The blueprint of a shape made by a recipe.

    A model whose text is chosen needs an output matrix of its own, also where the shape ties it to the embeddings.

    Raises:
        VeloError: the architecture, the mixture or the numbers of the succession are none that can be made.
    """
    architecture = find_architecture(shape.architecture)
    quantization = find_quantization(recipe.quantization, pure=recipe.pure)
    succession = recipe.succession
    parts = list(architecture.tensors(shape, tied=shape.tied and succession is None))
    tensors = choose_types(
        [*parts, *heads_embeddings(succession, parts, shape.name)],
        quantization,
        layers=shape.layers,
        experts=shape.experts.count if shape.experts else 0,
        grouped_heads=shape.kv_heads < shape.heads,
    )
    entries = {f"{shape.architecture}.{key}": value for key, value in architecture.metadata(shape)}
    return assemble(
        shape.name,
        {"general.architecture": shape.architecture, "general.file_type": quantization.file_type, **entries},
        tensors,
        vocab=shape.vocab,
        layers=shape.layers,
        seed=recipe.seed,
        succession=succession,
        rope_factors=_llama3_factors(shape.rope, shape.head_length),
    )


def heads_embeddings(succession: Succession | None, parts: Sequence[Part], name: str) -> list[Part]:
    """The embeddings of their own that the MTP layers among ``parts`` need to be wrong now and then.

    Raises:
        VeloError: there are no such layers, and they shall agree.
    """
    agreement = None if succession is None else succession.heads_agreement
    if agreement is None:
        return []
    sizes = dict(parts)
    joins = [part for part, _ in parts if part.endswith(HEADS_JOIN)]
    if not joins:
        raise VeloError(
            f"{name} has no MTP layers that could agree",
            "leave --agreement out, or make a draft for the model with --drafts-for",
        )
    wanted = [join.replace(HEADS_JOIN, HEADS_EMBEDDING) for join in joins if agreement < 1]
    return [(part, sizes["token_embd.weight"]) for part in wanted if part not in sizes]


def assemble(
    name: str,
    entries: Mapping[str, WriteValue],
    tensors: tuple[NewTensor, ...],
    *,
    vocab: int,
    layers: int,
    seed: int,
    succession: Succession | None,
    rope_factors: tuple[float, ...] = (),
    like: str | None = None,
) -> Blueprint:
    """A blueprint from the metadata and tensors of a model, with a made tokenizer and our mark.

    Raises:
        VeloError: there is no made vocabulary of that size, or the succession cannot be had.
    """
    try:
        words = make_vocabulary(vocab)
    except ValueError as error:
        raise VeloError(f"{name}: {error}", "choose another shape") from error
    if succession is not None:
        check_succession(succession, vocab - words.muted)
    values = Values(seed, layers, vocab, words.muted, gains_of(entries), succession, rope_factors)
    metadata: list[Key] = [
        ("general.architecture", entries["general.architecture"]),
        ("general.name", name),
        ("general.description", "Random weights made by VeloLLM to measure speed; its text has no meaning."),
        *_mark_keys(succession, like, heads=any(tensor.name.endswith(HEADS_JOIN) for tensor in tensors)),
        ("general.quantization_version", 2),
        *(item for item in entries.items() if item[0] != "general.architecture"),
        *_tokenizer_keys(words),
    ]
    return Blueprint(name, tuple(metadata), tensors, values)


def _mark_keys(succession: Succession | None, like: str | None, *, heads: bool) -> Iterator[Key]:
    """What a reader of the file has to know of its text (`read_succession`, and `MadeFacts` in facts)."""
    yield f"{_MARK}.kind", "random" if succession is None else "predictable"
    if like is not None:
        yield f"{_MARK}.like", like
    if succession is None:
        return
    yield f"{_MARK}.predictability", float(succession.predictability)
    yield f"{_MARK}.succession_seed", succession.seed
    if succession.period is not None:
        yield f"{_MARK}.period", succession.period
    if succession.agreement is not None:
        yield f"{_MARK}.agreement", float(succession.agreement)
    if heads:
        yield f"{_MARK}.heads_agreement", 1.0 if succession.heads_agreement is None else succession.heads_agreement


def read_succession(header: GgufHeader) -> Succession | None:
    """The succession of a made model by its own header; None where its text is not chosen, or nobody made it."""
    predictability = header.metadata.get(f"{_MARK}.predictability")
    seed = header.metadata.get(f"{_MARK}.succession_seed")
    if not isinstance(predictability, float) or not isinstance(seed, int):
        return None
    period, agreement = header.metadata.get(f"{_MARK}.period"), header.metadata.get(f"{_MARK}.agreement")
    return Succession(
        round(predictability, 6),
        period if isinstance(period, int) else None,
        round(agreement, 6) if isinstance(agreement, float) else None,
        seed,
    )


def _tokenizer_keys(words: Vocabulary) -> Iterator[Key]:
    yield "tokenizer.ggml.model", "llama"
    yield "tokenizer.ggml.tokens", words.tokens
    yield "tokenizer.ggml.scores", words.scores
    yield "tokenizer.ggml.token_type", words.kinds
    yield "tokenizer.ggml.bos_token_id", BEGIN_ID
    yield "tokenizer.ggml.eos_token_id", END_ID
    yield "tokenizer.ggml.unknown_token_id", UNKNOWN_ID
    yield "tokenizer.ggml.add_bos_token", True
    yield "tokenizer.ggml.add_eos_token", False
    # Bytes alone are often no valid text, at which llama-server fails; the end of the text stays possible.
    yield "tokenizer.ggml.suppress_tokens", [token for token in range(words.muted) if token != END_ID]
    # Without it every text would gain a leading blank, and tokens to text and back would not be the same.
    yield "tokenizer.ggml.add_space_prefix", False
    yield "tokenizer.chat_template", _CHAT_TEMPLATE


def gains_of(entries: Mapping[str, WriteValue]) -> Gains:
    """What the engine multiplies embeddings and logits by (``build_inp_embd`` and the graphs in src/models/*.cpp)."""
    architecture = str(entries["general.architecture"])

    def number(key: str) -> float:
        value = entries.get(f"{architecture}.{key}")
        return float(value) if isinstance(value, int | float) and value else 1.0

    embedding = number("embedding_scale")
    if architecture.startswith("gemma"):
        embedding = number("embedding_length") ** 0.5
    logits = number("logit_scale")
    if architecture.startswith("granite"):
        logits = 1 / logits
    return Gains(embedding, logits)


def _llama3_factors(rope: Rope, head_length: int) -> tuple[float, ...]:
    """Divisors of the rotary frequencies of Llama 3 (conversion/llama.py, ``generate_extra_tensors``)."""
    import math

    scaling = dict(rope.scaling)
    if scaling.get("type") != "llama3":
        return ()
    factor, original = float(scaling["factor"]), float(scaling["original_context"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    found = []
    for index in range(0, head_length, 2):
        wavelength = 2 * math.pi * rope.theta ** (index / head_length)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(found)


def ensure_model(
    shape: Shape, cache_dir: Path, recipe: Recipe = PURE_Q4_0, *, progress: Progress | None = None
) -> Path:
    """The made model of that shape and recipe under ``cache_dir``; it is made only when it is not there whole.

    ``progress`` is told bytes done and bytes in all. Two callers at once make it once: the second one waits.

    Raises:
        VeloError: the directory cannot be written, or the disk has not enough room.
    """
    blueprint = draw_blueprint(shape, recipe)
    name = shape.name if recipe.pure else f"{shape.name}-{find_quantization(recipe.quantization).name}"
    path = ensure_dir(cache_dir) / f"{name}.gguf"
    if is_whole(path, blueprint):
        return path
    with _locked(cache_dir / f"{name}.lock"):
        if not is_whole(path, blueprint):
            _remove_leftovers(path)
            write_model(path, blueprint, progress=progress)
    return path


def write_model(path: Path, blueprint: Blueprint, *, progress: Progress | None = None) -> None:
    """Write the file of a blueprint at ``path``; it is there whole or not at all.

    Raises:
        VeloError: the directory cannot be written, or the disk has not enough room.
    """
    filling = Filling(blueprint.values, blueprint.tensors)
    _check_space(path, blueprint.file_bytes)
    write_file(path, blueprint.header, blueprint.tensors, filling.pieces, progress)


def estimate_file_bytes(shape: Shape, recipe: Recipe = PURE_Q4_0) -> int:
    """Size of the made file, exact to the byte."""
    return draw_blueprint(shape, recipe).file_bytes


def made_model_facts(shape: Shape, recipe: Recipe = PURE_Q4_0) -> ModelFacts:
    """Facts of the model that `ensure_model` would make, without making it: ``path`` is None.

    Its header is read back from a file of the full size that has no data in it.
    """
    blueprint = draw_blueprint(shape, recipe)
    with tempfile.TemporaryDirectory(prefix="velollm-") as directory:
        path = Path(directory) / f"{shape.name}.gguf"
        path.write_bytes(blueprint.header)
        os.truncate(path, blueprint.file_bytes)
        facts = model_facts(read_gguf(path), shape.name)
    return facts.model_copy(update={"path": None})


def is_whole(path: Path, blueprint: Blueprint) -> bool:
    """Is there the file of that very blueprint, whole?"""
    try:
        if path.stat().st_size != blueprint.file_bytes:
            return False
        return read_gguf(path).metadata.get(_MARK) == blueprint.mark
    except (OSError, VeloError):
        return False


def is_made(header: GgufHeader) -> bool:
    """Was that file made here?"""
    return _MARK in header.metadata


def _remove_leftovers(path: Path) -> None:
    """Remove what a maker that was killed left behind; the lock is ours, so nobody writes it now."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _check_space(path: Path, needed: int) -> None:
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
