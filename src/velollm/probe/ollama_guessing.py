"""How much of what an engine guessed ahead was accepted, from its lines in a server's log."""

from __future__ import annotations

from collections.abc import Sequence

from velollm.backends.ollama_log import DraftedAnswer, parse_drafted_answers, parse_speculation
from velollm.facts import GuessingFacts

# The newest answers count: what is asked of a server changes.
_WINDOW = 20


def parse_guessing(lines: Sequence[str]) -> GuessingFacts | None:
    """What the lines of one load tell of its guesses; None where it does not guess."""
    kinds = parse_speculation(lines)
    if not kinds:
        return None
    answers = parse_drafted_answers(lines)
    newest, earlier = answers[-_WINDOW:], answers[:-_WINDOW]
    before = sum(answer.drafted for answer in earlier)
    return GuessingFacts(
        kinds=kinds,
        answers=len(newest),
        tokens=sum(answer.tokens for answer in newest),
        passes=sum(_passes(answer) for answer in newest),
        drafted=sum(answer.drafted for answer in newest),
        accepted=sum(answer.accepted for answer in newest),
        decode_s=round(sum(answer.decode_s for answer in newest), 3),
        drafting_s=_drafting_s(newest),
        earlier_acceptance=sum(answer.accepted for answer in earlier) / before if before else None,
    )


def _passes(answer: DraftedAnswer) -> int:
    """Passes of the model: each wrote one token, and those that were accepted besides."""
    return max(1, answer.tokens - answer.accepted)


def _drafting_s(answers: Sequence[DraftedAnswer]) -> float | None:
    if not answers or any(answer.drafting_s is None for answer in answers):
        return None
    return round(sum(answer.drafting_s or 0.0 for answer in answers), 6)
