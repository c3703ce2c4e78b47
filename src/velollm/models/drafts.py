"""Draft models: which are known for a main model, which of those at hand fit it, and what to expect of them.

The table is `configs/drafts.yaml`. Its acceptances are single reports: what to measure first, never a promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from velollm.errors import VeloError
from velollm.facts import Frozen, ModelFacts
from velollm.models.catalog import find_catalog_choice
from velollm.models.dflash import ARCHITECTURE as DFLASH
from velollm.models.dflash import check_dflash, dflash_cost_ratio, is_dspark
from velollm.models.gguf import model_facts
from velollm.models.header import GgufHeader, MetaValue, read_gguf
from velollm.models.mtp import runs_heads
from velollm.models.reads import active_weight_bytes, heads_weight_bytes
from velollm.models.tokenizer import TOKENS, Compatibility, compare_tokenizers, tokenizer_of
from velollm.models.yamlfile import load_rows

Kind = Literal["draft-simple", "draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark", "ngram"]
# A draft that is trained for one main model and says so by its architecture (src/llama-arch.cpp of llama.cpp b10488).
_EAGLE3 = "eagle3"


class Report(Frozen):
    """One report of acceptance (accepted by drafted tokens). ``draft_max``: tokens that were drafted at once."""

    workload: str | None = None
    low: float
    high: float
    draft_max: int | None = None
    hardware: str | None = None
    engine: str | None = None
    speedup: float | None = None
    source: str | None = None


class DraftPair(Frozen):
    """One row of the table; its fields are explained at the head of `configs/drafts.yaml`."""

    id: str
    kind: Kind
    main: str
    main_ollama: tuple[str, ...] = ()
    draft: str | None = None
    draft_ollama: tuple[str, ...] = ()
    draft_hf: str | None = None
    draft_parameters: int | None = None
    draft_file_bytes: int | None = None
    same_vocab: bool | None = None
    vocab_evidence: str | None = None
    tokenizer_fingerprint: str | None = None
    licence: str | None = None
    verdict: Literal["helps", "mixed", "hurts", "does-not-load", "unknown"]
    draft_max_recommended: str | None = None
    ollama: Literal["env", "option", "DRAFT", "no"] | None = None
    note: str | None = None
    results: int = 0
    speedup_range: tuple[float, float] | None = None
    acceptance: tuple[Report, ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class Acceptance:
    """Share of drafted tokens that is accepted, least and most, and what that rests on (one line for each report).

    ``basis``: ``made`` where both models were made to agree so far, ``table`` where others reported it.
    """

    low: float
    high: float
    basis: Literal["made", "table"]
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class DraftChoice:
    """One draft for a main model.

    ``path`` None: heads inside the main model's own file. ``cost_ratio``: bytes that the draft reads for a token by
    those of the main model; None where they are unknown. ``pair``: the table's row, where it has one.
    """

    name: str
    path: Path | None
    kind: Kind
    compatibility: Compatibility
    file_bytes: int | None = None
    cost_ratio: float | None = None
    acceptance: Acceptance | None = None
    pair: DraftPair | None = None


@dataclass(frozen=True)
class DraftChoices:
    """Drafts at hand that the engine takes for a model, likeliest gain first, and those it does not, each with why."""

    fit: tuple[DraftChoice, ...]
    unfit: tuple[DraftChoice, ...]


@lru_cache(maxsize=1)
def load_draft_pairs() -> tuple[DraftPair, ...]:
    """All rows of the table.

    Raises:
        VeloError: the table that ships with the program is missing or broken.
    """
    return tuple(DraftPair.model_validate(row) for row in load_rows("drafts", "pairs"))


def pairs_for(name: str | None, metadata: Mapping[str, MetaValue] | None = None) -> tuple[DraftPair, ...]:
    """Rows for a main model, by its Ollama name or, where that says nothing, by what its header calls it.

    Rows of n-grams are for any model, and are not among them.
    """
    keys = set(_keys_of_name(name)) if name else set()
    if not keys & _known_mains() and metadata is not None:
        keys |= set(_keys_of_header(metadata))
    return tuple(row for row in load_draft_pairs() if keys & {_key(main) for main in row.main_ollama})


def _keys_of_name(name: str) -> Iterable[str]:
    base = name.rsplit("/", 1)[-1]
    yield _key(base)
    choice = find_catalog_choice(base)
    if choice is not None:
        yield from (_key(known) for known in choice.row.ollama)


def _keys_of_header(metadata: Mapping[str, MetaValue]) -> Iterable[str]:
    """Family and size as llama.cpp's converter writes them (``general.basename``, ``general.size_label``)."""
    family, size = metadata.get("general.basename"), metadata.get("general.size_label")
    if isinstance(family, str) and isinstance(size, str):
        yield _key(f"{re.sub('^meta-', '', family, flags=re.IGNORECASE)}:{size}")


def _key(name: str) -> str:
    """A name without what spellings differ in: ``Qwen2.5-Coder:32B`` and ``qwen2.5-coder:32b`` are one."""
    family, _, size = name.lower().partition(":")
    return f"{re.sub(r'[^a-z0-9.]', '', family)}:{size or 'latest'}"


@lru_cache(maxsize=1)
def _known_mains() -> frozenset[str]:
    return frozenset(_key(main) for row in load_draft_pairs() for main in row.main_ollama)


def draft_choices(main: Path, at_hand: Iterable[tuple[str, Path]], *, name: str | None = None) -> DraftChoices:
    """What could draft for the model in the file ``main``: its own MTP heads, and the GGUF files ``at_hand``.

    ``at_hand``: (name, file) of installed models or files; the main model itself and files that are no models of text
    are left out, and what is drafted no cheaper than by the main model counts as unfit. ``name``: what Ollama calls the
    main model, which finds its rows in the table.

    Raises:
        VeloError: the main model cannot be read, or has no tokenizer.
    """
    return choose_drafts(read_gguf(main, texts=frozenset({TOKENS})), at_hand, name=name)


def choose_drafts(header: GgufHeader, at_hand: Iterable[tuple[str, Path]], *, name: str | None = None) -> DraftChoices:
    """The same for a main model whose header was read with its tokens. Raises `VeloError` as `draft_choices`."""
    known = pairs_for(name, header.metadata)
    facts = model_facts(header, name or header.path.name)
    found = [heads] if (heads := own_heads(facts, known)) is not None else []
    seen = {header.path.resolve()}
    for label, path in at_hand:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if (choice := _choice(header, facts, label, path, known)) is not None:
            found.append(choice)
    fit = [choice for choice in found if choice.compatibility.fits]
    return DraftChoices(
        tuple(sorted(fit, key=_rank)), tuple(choice for choice in found if not choice.compatibility.fits)
    )


def _rank(choice: DraftChoice) -> tuple[float, float]:
    """By what acceptance leaves over the cost, where both are known; then the cheapest."""
    cost = 1.0 if choice.cost_ratio is None else choice.cost_ratio
    middle = 0.0 if choice.acceptance is None else (choice.acceptance.low + choice.acceptance.high) / 2
    return (cost - middle, cost)


def own_heads(facts: ModelFacts, known: Sequence[DraftPair]) -> DraftChoice | None:
    """The MTP heads inside a model's own file; None where it has none."""
    if not facts.mtp_layers:
        return None
    row = next((pair for pair in known if pair.kind == "draft-mtp" and not pair.draft_hf), None)
    size, whole = heads_weight_bytes(facts), active_weight_bytes(facts)
    verdict = Compatibility(True, "they are part of the model")
    if not runs_heads(facts):
        words = f"the engine does not run those of {facts.architecture}, or the file does not hold them"
        verdict = Compatibility(False, words, "kind")
    return DraftChoice(
        name="MTP heads inside the model",
        path=None,
        kind="draft-mtp",
        compatibility=verdict,
        file_bytes=None,
        cost_ratio=size / whole if size and whole else None,
        acceptance=_made_heads(facts) or reported(row),
        pair=row,
    )


def _choice(
    main: GgufHeader, main_facts: ModelFacts, name: str, path: Path, known: Sequence[DraftPair]
) -> DraftChoice | None:
    """A file as a draft; None where it is no model that writes text (or cannot be read)."""
    try:
        header = read_gguf(path, texts=frozenset({TOKENS}))
        if not writes_text(header):
            return None
        tokenizer_of(header)
    except VeloError:
        return None
    return judge_draft(main, main_facts, header, name, path, known)


def judge_draft(
    main: GgufHeader,
    main_facts: ModelFacts,
    draft: GgufHeader,
    name: str,
    path: Path | None,
    known: Sequence[DraftPair],
) -> DraftChoice:
    """A draft by its header and the main model's, both read with their tokens.

    Raises:
        VeloError: one of them has no tokenizer.
    """
    facts = model_facts(draft, name)
    row = pair_of(name, draft.metadata, known)
    kind, verdict, ratio = match_draft(main, main_facts, draft, facts)
    if verdict.fits and ratio is not None and ratio >= 1:
        verdict = Compatibility(False, f"it reads {ratio:.2g} times the bytes of the model for each token", "size")
    return DraftChoice(
        name=name,
        path=path,
        kind=kind,
        compatibility=verdict,
        file_bytes=draft.file_bytes,
        cost_ratio=ratio,
        acceptance=_made(main_facts, facts) or reported(row),
        pair=row,
    )


def match_draft(
    main: GgufHeader, main_facts: ModelFacts, draft: GgufHeader, facts: ModelFacts
) -> tuple[Kind, Compatibility, float | None]:
    """The kind of speculation that a draft is for, whether the engine can run it, and what a guessed token reads.

    Raises:
        VeloError: one of the two has no tokenizer.
    """
    verdict = compare_tokenizers(tokenizer_of(main), tokenizer_of(draft))
    if facts.architecture == DFLASH:
        verdict = check_dflash(main_facts, draft) if verdict.fits else verdict
        return "draft-dspark" if is_dspark(draft) else "draft-dflash", verdict, dflash_cost_ratio(main_facts, facts)
    ratio = cost_ratio(main_facts, facts)
    if facts.architecture == _EAGLE3:
        words = "it is an eagle3 draft, which is trained for one model and which VeloLLM does not try"
        return "draft-eagle3", Compatibility(False, words, "kind"), ratio
    return "draft-simple", verdict, ratio


def writes_text(header: GgufHeader) -> bool:
    """Is it a model that generates, not one that embeds, ranks or sees?"""
    architecture = header.metadata.get("general.architecture")
    pools = header.metadata.get(f"{architecture}.pooling_type")
    return TOKENS in header.texts and not pools and architecture != "clip"


def cost_ratio(main: ModelFacts, draft: ModelFacts) -> float | None:
    """Bytes that the draft reads for a token by those of the main model; None where either is unknown."""
    own, whole = active_weight_bytes(draft), active_weight_bytes(main)
    return own / whole if own and whole else None


def pair_of(name: str, metadata: Mapping[str, MetaValue], known: Sequence[DraftPair]) -> DraftPair | None:
    """The row, of those for a main model, that has this draft."""
    keys = {*_keys_of_name(name), *_keys_of_header(metadata)}
    return next((row for row in known if keys & {_key(draft) for draft in row.draft_ollama}), None)


def _made(main: ModelFacts, draft: ModelFacts) -> Acceptance | None:
    """How far a made draft agrees with the made model that it was drawn for."""
    ours, theirs = main.made, draft.made
    if ours is None or theirs is None or ours.predictability is None or theirs.agreement is None:
        return None
    words = f"made to agree with its model after {theirs.agreement:.0%} of the tokens (under greedy decoding)"
    return Acceptance(theirs.agreement, theirs.agreement, "made", (words,))


def _made_heads(facts: ModelFacts) -> Acceptance | None:
    """How far the MTP layers of a made model agree with it."""
    if facts.made is None or facts.made.heads_agreement is None:
        return None
    share = facts.made.heads_agreement
    return Acceptance(share, share, "made", (f"made to be right after {share:.0%} of the tokens (greedy)",))


def reported(row: DraftPair | None) -> Acceptance | None:
    """What the table's reports say of a pair; None where nobody reported acceptance."""
    if row is None or not row.acceptance:
        return None
    low, high = min(report.low for report in row.acceptance), max(report.high for report in row.acceptance)
    return Acceptance(low, high, "table", tuple(_line(report) for report in row.acceptance))


def _line(report: Report) -> str:
    share = f"{report.low:.2f}" if report.low == report.high else f"{report.low:.2f} to {report.high:.2f}"
    words = [share, report.workload, f"{report.draft_max} drafted at once" if report.draft_max else None]
    words += [report.hardware, report.engine, report.source]
    return ", ".join(word for word in words if word)
