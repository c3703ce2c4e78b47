"""What guessing ahead was measured to gain: results whose arms differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from velollm.bench.history import Record
from velollm.bench.samples import Sample
from velollm.facts import PastGuess
from velollm.knobs import KnobValue

_KNOBS = frozenset({"speculation", "speculation_tokens", "speculation_match", "draft_model"})
_LEAST_ROUNDS = 3


def past_guesses(records: Iterable[Record]) -> tuple[PastGuess, ...]:
    """The newest measured gain of each kind of guessing for each model.

    Of a record those arms count whose knobs differ from an arm without guessing in how they guess, and in nothing else.
    """
    found: dict[tuple[str, str], PastGuess] = {}
    for record in records:
        for name, knobs in record.knobs.items():
            guess = _guess_of(record, name, knobs)
            if guess is not None:
                found[guess.model, guess.kind] = guess
    return tuple(found.values())


def _guess_of(record: Record, arm: str, knobs: Mapping[str, KnobValue]) -> PastGuess | None:
    kind = knobs.get("speculation")
    if not isinstance(kind, str) or kind == "none":
        return None
    plain = next((name for name, other in record.knobs.items() if _is_plain(other, knobs)), None)
    if plain is None:
        return None
    own = {sample.round: sample for sample in record.samples if sample.arm == arm}
    others = {sample.round: sample for sample in record.samples if sample.arm == plain}
    ratios = [
        rate / base
        for number in own.keys() & others.keys()
        if (rate := own[number].decode_tokens_per_s) and (base := others[number].decode_tokens_per_s)
    ]
    counted = _counted(list(own.values()))
    if len(ratios) < _LEAST_ROUNDS or counted is None:
        return None
    acceptance, drafted_per_pass = counted
    return PastGuess(
        when=record.taken_at,
        model=record.model,
        kind=kind,
        gain=round(median(ratios), 4),
        acceptance=round(acceptance, 4),
        drafted_per_pass=round(drafted_per_pass, 3),
    )


def _is_plain(other: Mapping[str, KnobValue], knobs: Mapping[str, KnobValue]) -> bool:
    """Is it the same without guessing?"""
    if other.get("speculation") not in (None, "none"):
        return False
    names = (other.keys() | knobs.keys()) - _KNOBS
    return all(other.get(name) == knobs.get(name) for name in names)


def _counted(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Acceptance, and tokens drafted for each pass of the model; None where the engine did not say."""
    drafted = sum(sample.drafted_tokens or 0 for sample in samples)
    accepted = sum(sample.accepted_tokens or 0 for sample in samples)
    passes = sum(sample.answer_tokens for sample in samples if sample.drafted_tokens) - accepted
    return (accepted / drafted, drafted / passes) if drafted and passes > 0 else None
