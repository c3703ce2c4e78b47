"""Prove a draft before it is downloaded, download it through Ollama, and prove it again from the file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_get import Report, pull_model
from velollm.backends.ollama_registry import Registry, RemoteModel, is_insecure, local_name
from velollm.draft.sources import Source, find_here, find_source, is_file_name, read_remote
from velollm.errors import VeloError
from velollm.models.drafts import DraftPair, match_draft, pair_of, pairs_for
from velollm.models.tokenizer import Compatibility, fits_fingerprint
from velollm.probe.machine import probe_machine
from velollm.recommend.get import Way, check_space

_VERDICTS = ("helps", "mixed", "unknown")
_FALLBACK = "the n-gram kinds of speculation need no draft: `velollm optimize MODEL --set speculation=ngram-mod`"


@dataclass(frozen=True)
class Proof:
    """Does a draft's vocabulary fit, and how is that known?

    ``basis``: ``headers`` (both were read), ``fingerprint`` or ``table`` (the draft's could not be read, and the table
    says it), ``none``. ``fits`` None: unknown. ``draft`` is what could be read of it.
    """

    fits: bool | None
    reason: str
    basis: Literal["headers", "fingerprint", "table", "none"]
    compatibility: Compatibility | None = None
    draft: Source | None = None
    cost_ratio: float | None = None

    @property
    def proved(self) -> bool:
        """Was the engine's own rule applied to both vocabularies?"""
        return self.basis in ("headers", "fingerprint")


@dataclass(frozen=True)
class Wanted:
    """A draft that may be got. ``remote`` None: it is installed already. ``note``: the disk's room is unknown."""

    main: Source
    name: str
    proof: Proof
    remote: RemoteModel | None
    pair: DraftPair | None
    note: str | None = None


def known_pairs(main: Source) -> tuple[DraftPair, ...]:
    """The table's rows for a main model."""
    return pairs_for(main.name, main.header.metadata)


def prove(main: Source, name: str, backend: OllamaBackend, registry: Registry) -> Proof:
    """Does the draft of that name fit? Not here, its head at the registry is read, and else the table counts.

    Raises:
        VeloError: there is no such model, or one of the two has no tokenizer.
    """
    here = find_here(name, backend)
    if here is not None or is_file_name(name):
        assert here is not None
        return compare(main, here)
    return _prove_remote(main, registry.find(name), registry)


def _prove_remote(main: Source, remote: RemoteModel, registry: Registry) -> Proof:
    try:
        source = read_remote(registry, remote)
    except VeloError as error:
        return by_table(main, remote.name, error.message)
    return compare(main, source)


def compare(main: Source, draft: Source) -> Proof:
    """Both headers by the engine's rule. Raises `VeloError` where one has no tokenizer."""
    _, found, ratio = match_draft(main.header, main.facts, draft.header, draft.facts)
    return Proof(found.fits, found.reason, "headers", found, draft, ratio)


def by_table(main: Source, name: str, why: str) -> Proof:
    """What the table of drafts says of one whose header cannot be read; ``why`` it cannot."""
    pair = pair_of(name, {}, known_pairs(main))
    told = None
    if pair is not None and pair.tokenizer_fingerprint:
        told = fits_fingerprint(main.tokenizer, pair.tokenizer_fingerprint)
    if told is not None:
        words = "has the tokenizer's fingerprint" if told else "has another tokenizer's fingerprint"
        return Proof(told, f"the table of drafts {words} for {name} ({why})", "fingerprint")
    if pair is None or pair.same_vocab is None:
        return Proof(None, f"nothing is known of its vocabulary: {why}", "none")
    words = f"the table of drafts says so ({pair.vocab_evidence or pair.source})"
    return Proof(pair.same_vocab, f"{words}; not proved: {why}", "table")


def choose_name(main: Source) -> str:
    """The draft to get where none was named: of the table, the one with the best verdict, then the smallest.

    Raises:
        VeloError: the table has none that can be pulled.
    """
    rows = [
        row
        for row in known_pairs(main)
        if row.kind == "draft-simple" and row.draft_ollama and row.verdict in _VERDICTS and row.ollama != "no"
    ]
    if not rows:
        raise VeloError(f"no draft is known for {main.name}", f"name one, or: {_fallback(main)}")
    best = min(rows, key=lambda row: (_VERDICTS.index(row.verdict), row.draft_file_bytes or 0))
    return best.draft_ollama[0]


def want(model: str, draft: str | None, backend: OllamaBackend, registry: Registry) -> Wanted:
    """All that can be known of a draft before it is downloaded.

    Raises:
        VeloError: no server answers, there is no such model, no network, no room, or the vocabulary does not fit.
    """
    backend.api.version()
    main = find_source(model, backend, registry)
    name = draft or choose_name(main)
    pair = pair_of(name, {}, known_pairs(main))
    here = find_here(name, backend)
    if here is not None:
        proof = compare(main, here)
        check_fit(main, name, proof)
        return Wanted(main, here.name, proof, None, pair)
    remote = registry.find(name)
    proof = _prove_remote(main, remote, registry)
    check_fit(main, name, proof)
    way = Way("pull", name, f"ollama pull {name}", needs_bytes=remote.total_bytes)
    return Wanted(main, name, proof, remote, pair, check_space(way, _models_dir()))


def check_fit(main: Source, name: str, proof: Proof) -> None:
    """Raise `VeloError` where the draft is of no use to the model."""
    if proof.fits is False:
        raise VeloError(f"{name} cannot draft for {main.name}: {proof.reason}", _fallback(main))
    if proof.cost_ratio is not None and proof.cost_ratio >= 1:
        raise VeloError(
            f"{name} is no draft for {main.name}: it reads {proof.cost_ratio:.2g} times the bytes for each token",
            "take a smaller model of the family",
        )


def fetch(wanted: Wanted, backend: OllamaBackend, report: Report) -> Proof:
    """Download it through Ollama, and prove it from what came. One that does not fit is removed again.

    Raises:
        VeloError: the download failed, or what came does not fit.
    """
    pull_model(backend.api, wanted.name, report, insecure=is_insecure(wanted.name))
    installed = local_name(wanted.name)
    try:
        here = find_here(installed, backend)
        if here is None:
            raise VeloError(f"Ollama does not show {installed}, though it pulled it", "see `ollama list`")
        proof = compare(wanted.main, here)
        check_fit(wanted.main, installed, proof)
    except VeloError as error:
        with contextlib.suppress(VeloError):  # the first error is the one to tell
            backend.api.delete("/api/delete", {"model": installed})
        raise VeloError(f"{error.message}; it was removed again", error.hint) from error
    return proof


def _fallback(main: Source) -> str:
    return _FALLBACK.replace("MODEL", main.name)


def _models_dir() -> Path | None:
    """Where this machine's server keeps models; None where that is unknown."""
    server = probe_machine(sample_s=0).server
    return None if server is None or server.remote or server.models_dir is None else Path(server.models_dir)
