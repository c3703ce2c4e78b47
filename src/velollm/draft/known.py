"""What is known of a model's drafts: the table's rows, what is here already, and what is left where none fits."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from velollm.backends.ollama import OllamaBackend
from velollm.config import Paths
from velollm.draft.gain import Gain, check_ratio, estimate_gain
from velollm.draft.sources import find_here, models_at_hand
from velollm.errors import VeloError
from velollm.facts import Facts, ModelFacts
from velollm.knobs import Wish
from velollm.models.catalog import find_catalog_model
from velollm.models.drafts import DraftChoice, DraftChoices, DraftPair, choose_drafts, pairs_for, reported
from velollm.models.header import read_gguf
from velollm.models.reads import active_weight_bytes
from velollm.models.speed import DeviceSpeed, Rate
from velollm.plan import load_profile
from velollm.probe.machine import probe_machine
from velollm.probe.speedtest import MachineSpeed, machine_key, read_machine_speed
from velollm.recommend.options import device_speeds

_WAYS = {
    "env": "the server's environment, for every model of the server",
    "option": "the model's parameter draft_num_predict",
    "DRAFT": "DRAFT in a Modelfile",
    "no": "not through Ollama",
}
# The table's row `ngram-tiny-main`.
_TINY_PARAMETERS = 1_100_000_000


@dataclass(frozen=True)
class KnownDraft:
    """One draft for a model: of the table, or at hand. ``source``: what to pull, or the file; None: nowhere known.

    ``choice`` is there for what is here already. ``size_bytes`` of what is not here is the table's, rounded.
    """

    name: str
    kind: str
    here: bool
    source: str | None
    size_bytes: int | None
    gain: Gain | None
    pair: DraftPair | None
    choice: DraftChoice | None = None

    @property
    def way(self) -> str | None:
        """How Ollama can use it."""
        return _WAYS.get(self.pair.ollama) if self.pair is not None and self.pair.ollama is not None else None


@dataclass(frozen=True)
class Left:
    """The best speculation that is left: a draft, the n-gram kinds, or none; and why."""

    kind: Literal["draft", "ngram", "none"]
    reason: str


@dataclass(frozen=True)
class Overview:
    """All that `velollm draft list` tells. ``unfit``: models that are here and do not fit, each with its reason.

    ``basis``: where the main model's vocabulary was read; None where it is not here.
    """

    model: str
    basis: str | None
    drafts: tuple[KnownDraft, ...]
    unfit: tuple[DraftChoice, ...]
    left: Left
    machine: str | None


def overview(name: str, backend: OllamaBackend, paths: Paths, files: Iterable[Path] = ()) -> Overview:
    """What is known of the drafts of a model, here or of the catalog. Asks no network.

    Raises:
        VeloError: there is no such model, or it or one of the ``files`` cannot be read.
    """
    files = tuple(files)
    for path in files:
        read_gguf(path)
    main = find_here(name, backend)
    model = main.facts if main is not None else find_catalog_model(name)
    if model is None:
        raise VeloError(
            f"there is no model '{name}'",
            "give the path of a .gguf file, an installed Ollama model (`ollama list`), or a name like llama3.1:8b",
        )
    pairs = pairs_for(name, None if main is None else main.header.metadata)
    choices = DraftChoices((), ())
    if main is not None:
        at_hand = models_at_hand(backend, os.environ, Path.home(), files)
        choices = choose_drafts(main.header, at_hand, name=name)
    facts = probe_machine(sample_s=0)
    device = device_of(model, facts, read_machine_speed(paths.data))
    check = check_ratio(model, device)
    drafts = (*_here(choices, check), *_of_table(pairs, choices, model, check))
    return Overview(
        model=name,
        basis=None if main is None else main.basis,
        drafts=drafts,
        unfit=choices.unfit,
        left=what_is_left(choices, model, backend, known=main is not None),
        machine=device.name if device is not None and check is not None else None,
    )


def device_of(model: ModelFacts, facts: Facts, measured: MachineSpeed | None) -> DeviceSpeed | None:
    """The device that would run the model: the GPU where all of it fits there, else the processor where there is none.

    None where it would be divided between both.
    """
    fits = measured is not None and measured.machine == machine_key(facts)
    read = Rate(measured.read_bytes_per_s, "measured", "measured here") if measured is not None and fits else None
    multiply = Rate(measured.multiply_flops, "measured", "measured here") if measured is not None and fits else None
    speeds = device_speeds(facts, Wish(load_profile("chat"), backend="ollama"), read, multiply)
    if speeds.gpu is None:
        return speeds.cpu
    room = sum(gpu.vram_bytes or 0 for gpu in facts.gpus or ())
    return speeds.gpu if model.file_bytes is not None and model.file_bytes < room else None


def _here(choices: DraftChoices, check: float | None) -> Iterable[KnownDraft]:
    for choice in choices.fit:
        gain = None
        if choice.acceptance is not None and choice.cost_ratio is not None:
            gain = estimate_gain(choice.acceptance, choice.cost_ratio, check, choice.pair)
        source = None if choice.path is None else choice.name
        yield KnownDraft(choice.name, choice.kind, True, source, choice.file_bytes, gain, choice.pair, choice)


def _of_table(
    pairs: Iterable[DraftPair], choices: DraftChoices, model: ModelFacts, check: float | None
) -> Iterable[KnownDraft]:
    seen = {choice.pair.id for choice in (*choices.fit, *choices.unfit) if choice.pair is not None}
    whole = active_weight_bytes(model)
    for pair in pairs:
        if pair.id in seen:
            continue
        acceptance, gain = reported(pair), None
        if acceptance is not None and whole and pair.draft_file_bytes:
            gain = estimate_gain(acceptance, pair.draft_file_bytes / whole, check, pair)
        source = pair.draft_ollama[0] if pair.draft_ollama else pair.draft_hf
        yield KnownDraft(pair.draft or pair.id, pair.kind, False, source, pair.draft_file_bytes, gain, pair)


def what_is_left(choices: DraftChoices, model: ModelFacts, backend: OllamaBackend, *, known: bool) -> Left:
    """Which speculation can be tried: a draft that is here and fits, else the n-gram kinds, else none."""
    if choices.fit:
        return Left("draft", f"{choices.fit[0].name} is here and fits; only a trial tells whether it pays")
    if choices.unfit:
        first = choices.unfit[0]
        why = f"no draft that is here fits ({first.name}: {first.compatibility.reason})"
    else:
        why = "no draft is here" if known else "the model is not here, so no draft can be proved to fit"
    if backend.version is not None and "speculation" not in backend.knobs:
        return Left("none", f"{why}, and Ollama {backend.version} speculates with nothing else: 0.30 brought it")
    words = f"{why}; the n-gram kinds need none, and gain where text repeats itself"
    if model.parameters is not None and model.parameters <= _TINY_PARAMETERS:
        words += "; on models of about 1B and less others saw them lose"
    return Left("ngram", words)
