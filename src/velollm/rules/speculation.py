"""Guessing tokens ahead from the text itself."""

from __future__ import annotations

from collections.abc import Mapping

from velollm.facts import Facts
from velollm.knobs import NGRAM_KINDS, Basis, Knobs, KnobValue, Wish
from velollm.rules.base import Advice, Rule, Skip

_OWN = {
    "speculation_tokens": "the engine's own length; `velollm tune` races others",
    "speculation_match": "the engine's own length; `velollm tune` races others",
    "polling": "the engine's own; `velollm tune` races another with a draft",
    "draft_model": "no draft is chosen; `velollm draft list` names those that fit",
}


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Puts the first n-gram kind that the profile lists to the trial, and names the others; else no guessing.

    Code and tool calls repeat earlier text, and there several tokens pass for one reading of the
    weights (39 tokens/s became 61, and 95 on the second pass). On text that hardly repeats it costs
    up to 13%, so only a measured gain keeps it. Answers do not change.
    """
    if "speculation" in wish.pins:
        return _advice(wish, str(wish.pins["speculation"]), "you asked for it with --set", "user")
    kinds = [kind for kind in wish.profile.speculation if kind in NGRAM_KINDS]
    if not kinds:
        reason = f"text of the profile {wish.profile.name} hardly repeats itself, where guessing costs speed"
        return _advice(wish, "none", reason, "table")
    reason = f"text of the profile {wish.profile.name} repeats itself; only a measured gain keeps it"
    return _advice(wish, kinds[0], reason, "table", tuple({"speculation": kind} for kind in kinds[1:]))


def _advice(
    wish: Wish, kind: str, reason: str, basis: Basis, candidates: tuple[Mapping[str, KnobValue], ...] = ()
) -> Advice:
    """The kind; its lengths and its draft are the engine's own, unless they are pinned."""
    values: dict[str, KnobValue] = {"speculation": kind}
    said: dict[str, tuple[str, Basis]] = {}
    for name, why in _OWN.items():
        values[name] = wish.pins.get(name)
        said[name] = ("you asked for it with --set", "user") if name in wish.pins else (why, "engine")
    return Advice(values, reason, basis, candidates, said)


rule = Rule("speculation", ("speculation", *_OWN), decide, title="Guessing ahead where text repeats")
