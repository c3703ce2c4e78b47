"""What answers pay for a setting that can change them: asked of private servers, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from velollm.autopilot.order import Cockpit, Course
from velollm.autopilot.trial import fresh_log
from velollm.backends.base import Backend, ModelRef
from velollm.facts import Facts
from velollm.knobs import Knobs
from velollm.tune.price import Price, Reading, load_price_text, price_of, read_text


@dataclass(frozen=True)
class Stand:
    """What one server runs: a file with some knobs. ``facts`` are those with this file's model."""

    name: str
    model: ModelRef
    knobs: Knobs
    facts: Facts


def measure_prices(
    course: Course, engine: Backend, stands: Sequence[Stand], budget_s: float, cockpit: Cockpit
) -> list[Price]:
    """The price of each stand but the first, against the first.

    Raises:
        VeloError: a server does not start, tells no probabilities, or the time is too short.
    """
    text, readings = load_price_text(), list[Reading]()
    contexts = [c for stand in stands if isinstance(c := stand.knobs.get("context_tokens"), int)]
    for number, stand in enumerate(stands):
        log = fresh_log(course, f"price-{number}")
        with engine.trial(stand.model, stand.knobs, stand.facts, log=log) as server:
            readings.append(
                read_text(
                    server,
                    text,
                    budget_s / len(stands),
                    lambda told: cockpit(1.0, f"price of other answers: {told}"),
                    context_tokens=min(contexts, default=None),
                    depths=tuple(readings[0].found) if readings else None,
                )
            )
    made = course.facts.model is not None and course.facts.model.made is not None
    return [price_of(readings[0], reading, made=made) for reading in readings[1:]]
