"""Models made to measure: what is asked for, where its shape comes from, and the stand-in for one not yet there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from velollm.autopilot.order import Cockpit
from velollm.backends.base import ModelRef
from velollm.backends.gguf_files import find_gguf
from velollm.backends.ollama_find import parse_host
from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError
from velollm.config import Paths, ensure_dir
from velollm.errors import UsageError, VeloError
from velollm.facts import Facts, ModelFacts
from velollm.models.families import Family, find_family, get_family
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.shape import Shape, cut_layers
from velollm.models.succession import Succession
from velollm.models.synthetic import (
    Blueprint,
    Recipe,
    draw_blueprint,
    ensure_model,
    estimate_file_bytes,
    is_made,
    made_model_facts,
    read_succession,
    write_model,
)
from velollm.models.twin import Model, draw_twin, model_of_header, model_of_shown
from velollm.units import render_bytes

STAND_IN = "made like "
_HEAD = 64
_STEP = 256


@dataclass(frozen=True)
class Wish:
    """A model to be made: of a known ``family``, ``like`` a model that is there, or as a draft for a made file.

    ``quantization`` None: the usual one, or the twin's own formats.
    """

    family: str | None = None
    like: str | None = None
    quantization: str | None = None
    layers: int | None = None
    predictability: float | None = None
    period: int | None = None
    drafts_for: Path | None = None
    agreement: float | None = None
    seed: int = 1


def draw(wish: Wish, ollama_host: str | None = None) -> Blueprint:
    """The blueprint of the wished model.

    Raises:
        UsageError: the wish contradicts itself.
        VeloError: a model or family is not known, or cannot be made.
    """
    _check(wish)
    if wish.like is not None:
        model = find_model(wish.like, ollama_host)
        return draw_twin(model, quantization=wish.quantization, seed=wish.seed, succession=_succession(wish, wish.seed))
    if wish.drafts_for is not None:
        return _draw_draft(wish, wish.drafts_for)
    family = get_family(wish.family or "")
    shape = family.shape if wish.layers is None else cut_layers(family.shape, wish.layers)
    quantization = wish.quantization or family.quantization
    return draw_blueprint(shape, Recipe(quantization, seed=wish.seed, succession=_succession(wish, wish.seed)))


def _check(wish: Wish) -> None:
    if wish.like is not None and (wish.family is not None or wish.drafts_for is not None or wish.layers is not None):
        raise UsageError("--like takes the whole shape of a model", "leave FAMILY, --layers and --drafts-for out")
    if wish.like is None and wish.family is None and wish.drafts_for is None:
        raise UsageError("which model shall be made?", "give FAMILY:SIZE such as llama3.2:1b, or --like MODEL")
    if wish.agreement is not None and wish.drafts_for is None and wish.predictability is None:
        raise UsageError(
            "--agreement is that of a draft or of MTP layers",
            "give the model that it drafts for: --drafts-for FILE; or --predictability for a model with such layers",
        )
    if wish.period is not None and (wish.predictability is None or wish.drafts_for is not None):
        raise UsageError(
            "--period is that of a predictable text", "give --predictability too; a draft takes its model's"
        )


def _succession(wish: Wish, seed: int) -> Succession | None:
    """The chosen text of a model, with which its own MTP layers, if it has any, shall agree."""
    if wish.predictability is None:
        return None
    return Succession(wish.predictability, wish.period, None, seed, wish.agreement)


def find_model(name: str, ollama_host: str | None) -> Model:
    """A model that is there: a GGUF file, or one of an Ollama store or server.

    Raises:
        VeloError: there is none of that name.
    """
    path = None
    try:
        path = find_gguf(name).path
    except VeloError:
        if name.endswith(".gguf"):
            raise
    if path is not None:
        return model_of_header(read_gguf(path), name)
    api = OllamaApi(parse_host(ollama_host))
    try:
        return model_of_shown(api.show(name, verbose=True), name)
    except OllamaRefusalError as error:
        raise VeloError(f"there is no model '{name}'", "give a GGUF file, or a model of `ollama list`") from error
    finally:
        api.close()


def _draw_draft(wish: Wish, path: Path) -> Blueprint:
    """A small model with the vocabulary of a made one, that names the same followers after a share of the tokens."""
    header = read_gguf(path)
    succession = read_succession(header)
    facts = model_facts(header, path.stem)
    if succession is None or not is_made(header) or facts.vocab is None:
        raise VeloError(
            f"{path} has no chosen text that a draft could agree with",
            "make it with `velollm synth … --predictability 0.8`",
        )
    shape = _draft_shape(facts) if wish.family is None else get_family(wish.family).shape
    shape = shape if wish.layers is None else cut_layers(shape, wish.layers)
    shape = replace(shape, name=f"{path.stem}-draft", vocab=facts.vocab)
    own = replace(
        succession,
        predictability=succession.predictability if wish.predictability is None else wish.predictability,
        agreement=0.8 if wish.agreement is None else wish.agreement,
    )
    return draw_blueprint(shape, Recipe(wish.quantization or "q4_0", seed=wish.seed, succession=own))


def _draft_shape(facts: ModelFacts) -> Shape:
    """A llama-architecture model of a quarter of the width and of the layers."""
    width = max(_STEP, (facts.embedding_length or 0) // 4 // _STEP * _STEP)
    layers = max(2, (facts.layers or 0) // 4)
    heads = width // _HEAD
    return Shape("", layers, width, heads, max(1, heads // 2), 3 * width, 0, facts.context_train or 4096)


def note_of(model: ModelFacts | None) -> tuple[str, ...]:
    """What a reader of a result has to know where the model was made; nothing where it was not."""
    made = None if model is None else model.made
    if made is None:
        return ()
    whose = f" in the shape of {made.like}" if made.like else ""
    if made.kind != "predictable":
        return (f"the model is a made one{whose}: its speed is real, its text means nothing",)
    period = f", repeating every {made.period} tokens" if made.period else ""
    text = f"its text is chosen (each token follows with {made.predictability:.2g} at temperature 1{period})"
    return (f"the model is a made one{whose}: its speed is real, {text}; how much of a draft it accepts is assumed",)


def stand_in(name: str, paths: Paths, cockpit: Cockpit, *, make: bool, probe: Callable[[], Facts]) -> ModelRef | None:
    """A made model in the place of a known one that is not here; None where that name is not known.

    With ``make`` off it is only named. ``probe`` tells whether any memory here could hold it.

    Raises:
        VeloError: neither memory nor disk could hold it.
    """
    family = find_family(name)
    if family is None:
        return None
    recipe = Recipe(family.quantization)
    size = estimate_file_bytes(family.shape, recipe)
    ref = f"{STAND_IN}{family.name}@{family.quantization}"
    if not make:
        return ModelRef(ref, None)
    _check_memory(family, size, probe())

    def progress(done: int, total: int) -> None:
        cockpit(done / total, f"making a model with the shape of {family.name} ({render_bytes(size)})")

    path = ensure_model(family.shape, ensure_dir(paths.cache / "models"), recipe, progress=progress)
    cockpit.note(
        f"{family.name} is not here: measuring with a made model of its shape and random weights, "
        f"{path} ({render_bytes(size)}). Its speed is real, its text means nothing."
    )
    return ModelRef(ref, path)


def stand_in_facts(name: str) -> ModelFacts | None:
    """Facts of the model that `stand_in` named and did not make."""
    family = find_family(name.removeprefix(STAND_IN)) if name.startswith(STAND_IN) else None
    return None if family is None else made_model_facts(family.shape, Recipe(family.quantization))


def _check_memory(family: Family, size: int, facts: Facts) -> None:
    """A file that no memory here could hold would only fill the disk."""
    memory = facts.memory
    if memory is None or memory.total_bytes is None:
        return
    total = min(memory.total_bytes, memory.limit_bytes or memory.total_bytes)
    total += sum(gpu.vram_bytes or 0 for gpu in facts.gpus or () if not gpu.unified_memory)
    if size > total:
        raise VeloError(
            f"{family.name} needs {render_bytes(size)} for its weights alone, and this machine has "
            f"{render_bytes(total)} of memory",
            "choose a smaller size",
        )


def make_model(
    wish: Wish, path: Path | None, cockpit: Cockpit, *, replace_file: bool = False, ollama_host: str | None = None
) -> tuple[Path, ModelFacts]:
    """Write the wished model; without a ``path``, to a file of its own name in the working directory.

    Raises:
        UsageError: the wish contradicts itself.
        VeloError: it cannot be made, or another file is in its place (which ``replace_file`` allows).
    """
    cockpit(0.0, "working out the model")
    blueprint = draw(wish, ollama_host)
    path = path or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', blueprint.name).strip('-')}.gguf")
    if not replace_file and path.exists():
        raise VeloError(f"{path} is there already", "choose another name with --output, or add --force")
    began_s = time.monotonic()

    def progress(done: int, total: int) -> None:
        spent_s = time.monotonic() - began_s
        left_s = spent_s * (total - done) / done if done and spent_s > 1 else None
        cockpit(done / total, f"making {path.name} ({render_bytes(total)})", left_s)

    write_model(path, blueprint, progress=progress)
    return path, model_facts(read_gguf(path), blueprint.name)
