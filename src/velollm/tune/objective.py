"""The one figure that a profile's race is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from velollm.bench.samples import Sample
from velollm.bench.workload import USERS, Workload
from velollm.knobs import Profile


@dataclass(frozen=True)
class Objective:
    """``words`` names it; ``score`` of a sample is higher where it is better, None where it was not measured.

    ``users``: how many ask at once, 0 for one alone.
    """

    words: str
    users: int
    score: Callable[[Sample], float | None]


def objective_of(profile: Profile, workload: Workload) -> Objective:
    """Turns a second for a single user, tokens a second of all users for several."""
    if profile.objective == "aggregate":
        return Objective(f"tokens/s of {USERS} users together", USERS, lambda sample: sample.aggregate_4_tokens_per_s)
    return Objective("time of a whole turn", 0, lambda sample: turns_per_s(sample, workload))


def turns_per_s(sample: Sample, workload: Workload) -> float | None:
    """How many whole turns of the workload's own sizes fit in a second, by the sample's rates.

    A race asks short prompts and answers, to have many; a turn's time is the prompt over the prefill rate, and the
    answer over the decode rate. What changes with the depth shows where the winner is confirmed.
    """
    prefill, decode = sample.prefill_tokens_per_s, sample.decode_tokens_per_s
    if not prefill or not decode:
        return None
    return 1 / (workload.prompt_tokens / prefill + workload.decode_tokens / decode)
