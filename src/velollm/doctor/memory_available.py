"""Main memory that is left."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts
from velollm.units import GIB, render_bytes

_NAME = "memory-available"
_WHY = "the next load swaps, or the kernel ends a process"
_FIX = "end programs that hold memory (`ps aux --sort=-rss | head` shows them)"

# Low both in share and in amount: a tenth of a large machine still holds a model.
_LOW_SHARE, _LOW_BYTES = 0.10, 4 * GIB
_DIRE_SHARE, _DIRE_BYTES = 0.03, GIB


def run(facts: Facts) -> Iterator[Finding]:
    """Finds too little available memory: under a tenth of all and under 4 GiB, or less than the model's weights.

    Under 3% and 1 GiB it is critical: the next load swaps, or the kernel ends a process.
    """
    memory = facts.memory
    if memory is None or memory.available_bytes is None:
        return
    available, total = memory.available_bytes, memory.total_bytes
    seen = evidence(facts, "memory.available_bytes", render_bytes(available))
    if total and available < _LOW_SHARE * total and available < _LOW_BYTES:
        dire = available < _DIRE_SHARE * total and available < _DIRE_BYTES
        title = f"only {render_bytes(available)} of {render_bytes(total)} memory is available"
        of = evidence(facts, "memory.total_bytes", render_bytes(total))
        yield Finding(_NAME, "critical" if dire else "warning", title, (seen, of), _FIX, _WHY)
    weights = facts.model.tensor_bytes if facts.model else None
    if weights is not None and weights > available and not facts.gpus:
        title = f"the weights of {facts.model.name if facts.model else 'the model'} are larger than available memory"
        yield Finding(
            _NAME, "warning", title, (evidence(facts, "model.tensor_bytes", render_bytes(weights)), seen), _FIX, _WHY
        )


check = Check(_NAME, "Available memory", "critical", False, run)
