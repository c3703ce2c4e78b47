"""How the system schedules the engine's threads."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Leaves it as it is: a higher priority takes from other programs, so only `--set priority=high` turns it.

    It needs a right of the server's user (root or CAP_SYS_NICE on Linux). On two cores with one busy it kept
    decode at 45 tokens/s, where the normal priority fell to 0.9.
    """
    return pinned(wish, "priority") or Skip("a higher priority takes from other programs, so it is yours to choose")


rule = Rule("priority", ("priority",), decide, title="Priority of the engine's threads")
