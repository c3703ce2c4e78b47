"""How a comparison is laid out: what is measured in each round, and when there are enough rounds."""

from __future__ import annotations

from dataclasses import dataclass

from velollm.bench.workload import USERS

MOST_ROUNDS = 200


@dataclass(frozen=True)
class Design:
    """``levels``: how many users ask at once, one part each. ``control``: the baseline runs twice in each round.

    ``precision``: rounds go on until the intervals of `watched` reach no farther than this share of the estimate, or
    the time is over. That the width ends it, and never a verdict, keeps the false verdicts as rare as with a fixed
    number. ``rounds``: exactly so many instead. ``whole``: also the figures that cost time of their own, TTFT with a
    cached prefix, TTFT of a cold load, and whether greedy answers are equal. ``depth_tokens``: text that the server
    has read before each prompt.
    """

    levels: tuple[int, ...] = (USERS,)
    control: bool = False
    precision: float | None = None
    rounds: int | None = None
    whole: bool = False
    depth_tokens: int = 0
    watched: tuple[str, ...] = ("decode", "ttft")


FLIGHT = Design()
"""A flight's own: its time goes to rounds, and its noise is told from the arms' own rounds."""
