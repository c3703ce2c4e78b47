"""How long an idle model stays in memory."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned
from velollm.units import render_duration


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Takes what the profile wishes; where it has no wish, the engine's own time stays.

    After that time without a request the model leaves memory, and the next request waits until it
    is loaded again.
    """
    if advice := pinned(wish, "keep_alive_s"):
        return advice
    seconds = wish.profile.keep_alive_s
    if seconds is None:
        return Skip(f"the profile {wish.profile.name} leaves the engine's own time")
    lasting = render_duration(seconds)
    return Advice({"keep_alive_s": seconds}, f"the profile {wish.profile.name} keeps an idle model {lasting}", "table")


rule = Rule("keep-alive", ("keep_alive_s",), decide, title="How long an idle model stays")
