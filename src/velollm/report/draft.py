"""Drafts as a terminal shows them, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velollm.draft.gain import Gain
from velollm.draft.get import Proof, Wanted
from velollm.draft.known import KnownDraft, Overview
from velollm.draft.sources import Source
from velollm.models.drafts import Acceptance, reported
from velollm.models.tokenizer import fingerprint
from velollm.units import render_bytes

_READ = {"file": "its file", "server": "what Ollama shows of it", "registry": "the head of the registry's file"}
_LEFT = {"draft": "a draft model", "ngram": "the n-gram kinds", "none": "none"}


def render_overview(found: Overview) -> RenderableType:
    """What is known of a model's drafts: a table, and a few lines on each."""
    if not found.drafts:
        return Group(Text(f"No draft is known for {found.model}."), *_tail(found))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("draft", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for title in ("size", "accepted", "gain"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("reports", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for draft in found.drafts:
        table.add_row(*_cells(draft))
    details = [Text(line) for draft in found.drafts for line in _details(draft)]
    return Group(table, Text(""), *details, *_tail(found))


def _cells(draft: KnownDraft) -> tuple[str, ...]:
    return (
        draft.source or draft.name,
        draft.kind,
        render_bytes(draft.size_bytes) if draft.size_bytes is not None else "-",
        _share(acceptance_of(draft)),
        "-" if draft.gain is None else _times(draft.gain),
        draft.pair.verdict if draft.pair is not None else "-",
        "yes" if draft.here else "no",
    )


def acceptance_of(draft: KnownDraft) -> Acceptance | None:
    """What is expected of it: by its own make, else by the table's reports."""
    return draft.choice.acceptance if draft.choice is not None else reported(draft.pair)


def _share(acceptance: Acceptance | None) -> str:
    if acceptance is None:
        return "unknown"
    low, high = f"{acceptance.low:.2f}", f"{acceptance.high:.2f}"
    return low if low == high else f"{low}-{high}"


def _times(gain: Gain) -> str:
    least, most = f"{gain.least:.2g}", f"{gain.most:.2g}"
    return f"{most}×" if least == most else f"{least}-{most}×"


def _details(draft: KnownDraft) -> list[str]:
    acceptance, gain, pair = acceptance_of(draft), draft.gain, draft.pair
    lines = [f"{draft.source or draft.name}:"]
    if pair is not None and pair.draft and pair.draft != draft.name and draft.here:
        lines.append(f"  known as {pair.draft}")
    if pair is not None and pair.licence:
        lines.append(f"  licence: {pair.licence}")
    if draft.way is not None:
        lines.append(f"  with Ollama: {draft.way}")
    if draft.choice is not None:
        lines.append(f"  fits: {draft.choice.compatibility.reason}")
    elif pair is not None and pair.same_vocab is not None:
        lines.append(f"  vocabulary: {'fits' if pair.same_vocab else 'does not fit'} by the table; not proved")
    if acceptance is not None:
        lines += [f"  accepted [{acceptance.basis}]: {line}" for line in acceptance.evidence[:4]]
    if gain is not None:
        lines.append(f"  gain [arithmetic]: {_gain_words(gain)}")
    if pair is not None and pair.note:
        lines.append(f"  note: {pair.note}")
    if pair is not None and pair.source:
        lines.append(f"  reported by: {pair.source}")
    return lines


def _gain_words(gain: Gain) -> str:
    words = f"{gain.tokens_per_pass:.2g} tokens for a pass with {gain.length} drafted; a drafted token costs "
    words += f"{gain.cost_ratio:.2g} passes"
    checked = "checking counted as free" if gain.check_ratio is None else f"computing one {gain.check_ratio:.2g}"
    return f"{words}, {checked}; it pays above {gain.break_even:.2f} accepted"


def _tail(found: Overview) -> list[Text]:
    lines = [f"Does not fit: {choice.name}: {choice.compatibility.reason}." for choice in found.unfit]
    if found.basis is None:
        lines.append(f"{found.model} is not here: nothing of this is proved.")
    lines.append(f"Speculation that is left: {_LEFT[found.left.kind]}: {found.left.reason}.")
    return [Text(""), *map(Text, lines)]


def overview_fields(found: Overview) -> dict[str, Any]:
    """An overview for JSON."""
    return {
        "model": found.model,
        "vocabulary_read_from": found.basis,
        "drafts": [_draft_fields(draft) for draft in found.drafts],
        "unfit": [{"name": choice.name, "reason": choice.compatibility.reason} for choice in found.unfit],
        "left": asdict(found.left),
        "machine": found.machine,
    }


def _draft_fields(draft: KnownDraft) -> dict[str, Any]:
    acceptance, pair, choice = acceptance_of(draft), draft.pair, draft.choice
    return {
        "name": draft.name,
        "source": draft.source,
        "kind": draft.kind,
        "here": draft.here,
        "size_bytes": draft.size_bytes,
        "cost_ratio": choice.cost_ratio if choice is not None else None,
        "fits": None if choice is None else asdict(choice.compatibility),
        "acceptance": None if acceptance is None else asdict(acceptance),
        "gain": None if draft.gain is None else {**asdict(draft.gain), "evidence": "arithmetic"},
        "ollama": None if pair is None else pair.ollama,
        "table": None if pair is None else pair.model_dump(mode="json"),
    }


def render_proof(model: str, name: str, proof: Proof) -> RenderableType:
    """Does a draft fit, and how is that known?"""
    answer = {True: "fits", False: "does not fit", None: "may or may not fit"}[proof.fits]
    lines = [f"{name} {answer} {model}: {proof.reason}."]
    if proof.draft is not None:
        read = f" ({render_bytes(proof.draft.read_bytes)} were read)" if proof.draft.read_bytes else ""
        lines.append(f"Proved by llama.cpp's own rule, from {_READ[proof.draft.basis]}{read}.")
    if proof.cost_ratio is not None:
        lines.append(f"A drafted token reads {proof.cost_ratio:.2g} of the bytes of the model's own [arithmetic].")
    return Group(*map(Text, lines))


def proof_fields(main: Source, name: str, proof: Proof) -> dict[str, Any]:
    """A proof for JSON."""
    found, draft = proof.compatibility, proof.draft
    return {
        "model": main.name,
        "draft": name,
        "fits": proof.fits,
        "proved": proof.proved,
        "basis": proof.basis,
        "reason": proof.reason,
        "differs": None if found is None else found.differs,
        "token": None if found is None else found.token,
        "cost_ratio": proof.cost_ratio,
        "fingerprints": {
            "model": fingerprint(main.tokenizer),
            "draft": None if draft is None else fingerprint(draft.tokenizer),
        },
        "read_from": {"model": main.basis, "draft": None if draft is None else draft.basis},
        "read_bytes": None if draft is None else draft.read_bytes,
    }


def render_wanted(wanted: Wanted) -> RenderableType:
    """A draft before it is downloaded."""
    lines: list[RenderableType] = [render_proof(wanted.main.name, wanted.name, wanted.proof)]
    if wanted.pair is not None and wanted.pair.licence:
        lines.append(Text(f"Licence: {wanted.pair.licence}."))
    if wanted.remote is None:
        lines.append(Text(f"{wanted.name} is installed."))
    else:
        lines.append(Text(f"To get it ({render_bytes(wanted.remote.total_bytes)}): ollama pull {wanted.name}"))
    return Group(*lines)
