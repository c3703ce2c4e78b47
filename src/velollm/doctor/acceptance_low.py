"""Guessing ahead that no longer pays."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, Mend, ParameterMend, evidence
from velollm.doctor.environment import judged_environment
from velollm.doctor.mend import noted
from velollm.facts import EngineFacts, Facts, GuessingFacts, PastGuess, ServerFacts

_NAME = "acceptance-low"
_WHY = "each guess that is thrown away was paid for: answers are slower than without guessing"
# Fewer tell too little: a text can be unlike all others.
_LEAST_ANSWERS = 5
_LEAST_DRAFTED = 200
_VARIABLES = ("LLAMA_ARG_SPEC_TYPE", "LLAMA_ARG_SPEC_DRAFT_MODEL", "LLAMA_ARG_SPEC_DRAFT_N_MAX")
_HEADS = "draft_num_predict"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds guessing ahead (a draft model, MTP layers, n-grams) of which less is accepted than it takes to pay.

    The server's log tells for each answer how many guessed tokens were accepted, and how long guessing took; the
    newest answers count, where there are enough of them. What must be accepted comes from the gain that was measured
    here at a known acceptance, else from the engine's own times (what a guess took by what a pass of the model took),
    else from the bytes of both models. The last two leave out that checking several tokens can take longer than making
    one, so they accuse late, never early.
    """
    server = facts.server
    engine = server.activity.engine if server and server.activity else None
    seen = engine.guessing if engine is not None else None
    if server is None or engine is None or seen is None or seen.acceptance is None:
        return
    if seen.answers < _LEAST_ANSWERS or seen.drafted < _LEAST_DRAFTED:
        return
    found = _break_even(facts, engine, seen)
    if found is None or seen.acceptance >= found[0]:
        return
    least, basis = found
    kinds = " and ".join(seen.kinds)
    title = (
        f"guessing ahead ({kinds}) does not pay: {seen.acceptance:.0%} of its tokens were accepted in the last "
        f"{seen.answers} answers, and it takes {least:.0%}"
    )
    window = f"draft acceptance {seen.acceptance:.3f}: {seen.accepted:,} of {seen.drafted:,} in {seen.answers} answers"
    proof = [evidence(facts, "server.activity", window), basis]
    if seen.earlier_acceptance is not None:
        proof.append(evidence(facts, "server.activity", f"{seen.earlier_acceptance:.3f} in the answers before"))
    fix, mend = _fix(facts, server, engine)
    yield Finding(_NAME, "warning", title, tuple(proof), fix, _WHY, mend)


def _break_even(facts: Facts, engine: EngineFacts, seen: GuessingFacts) -> tuple[float, Evidence] | None:
    """The least acceptance that pays, and where that comes from; None where nothing tells."""
    past = _measured(facts, engine, seen)
    if past is not None and past.break_even is not None:
        words = f"measured {past.when[:10]}: {past.gain:.2f} times the speed at an acceptance of {past.acceptance:.2f}"
        return past.break_even, evidence(facts, "past", f"{words}, so it pays above {past.break_even:.3f}")
    if seen.break_even is not None:
        words = f"of {seen.decode_s:.1f} s of decode {seen.drafting_s:.1f} s went into {seen.drafted:,} guesses"
        return seen.break_even, evidence(facts, "server.activity", f"{words}, so it pays above {seen.break_even:.3f}")
    if engine.draft_weights_bytes and engine.weights_bytes:
        share = engine.draft_weights_bytes / engine.weights_bytes
        words = f"the draft has {share:.3f} of the model's bytes, so it pays above that at the least [arithmetic]"
        return share, evidence(facts, "server.activity", words)
    return None


def _measured(facts: Facts, engine: EngineFacts, seen: GuessingFacts) -> PastGuess | None:
    """The gain that was measured here for this model with this kind alone."""
    past = facts.past.guesses if facts.past is not None else ()
    names = {engine.model, f"{engine.model}:latest", str(engine.model).removesuffix(":latest")}
    return next((guess for guess in past if guess.model in names and seen.kinds == (guess.kind,)), None)


def _fix(facts: Facts, server: ServerFacts, engine: EngineFacts) -> tuple[str, Mend | None]:
    """What turns it off: the server's variables, or the model's parameter."""
    env = judged_environment(facts)
    if env is not None and (given := [name for name in _VARIABLES if name in env]):
        return noted(env.unset(given[0]), "or `velollm undo`"), env.mend(**dict.fromkeys(given, None))
    model = next((one for one in server.models or () if one.name == engine.model), None)
    if model is not None and any(name == _HEADS for name, _ in model.parameters):
        command = f"velollm optimize {model.name} --set speculation=none"
        return command, ParameterMend(model.name, {_HEADS: None})
    return f"velollm optimize {engine.model or 'MODEL'} --set speculation=none", None


check = Check(_NAME, "Guessing ahead that does not pay", "warning", True, run)
