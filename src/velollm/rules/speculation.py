"""Guessing tokens ahead from the text itself."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import SPECULATION_KINDS, Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Puts the first n-gram kind that the profile lists to the trial, and names the others; else no guessing.

    Code and tool calls repeat earlier text, and there several tokens pass for one reading of the
    weights (39 tokens/s became 61, and 95 on the second pass). On text that hardly repeats it costs
    up to 13%, so only a measured gain keeps it. Answers do not change.
    """
    if advice := pinned(wish, "speculation"):
        return advice
    kinds = [kind for kind in wish.profile.speculation if kind in SPECULATION_KINDS and kind != "none"]
    if not kinds:
        reason = f"text of the profile {wish.profile.name} hardly repeats itself, where guessing costs speed"
        return Advice({"speculation": "none"}, reason, "table")
    return Advice(
        {"speculation": kinds[0]},
        f"text of the profile {wish.profile.name} repeats itself; only a measured gain keeps it",
        "table",
        tuple({"speculation": kind} for kind in kinds[1:]),
    )


rule = Rule("speculation", ("speculation",), decide, title="Guessing ahead where text repeats")
