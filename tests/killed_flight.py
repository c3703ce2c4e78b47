"""A flight over an Ollama model that ends with SIGKILL at one of its calls: `killed_flight.py ACTION NUMBER WHEN`.

ACTION is ``apply`` or ``undo``, NUMBER counts the calls that change the server, WHEN is ``before`` or ``after``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from velollm.apply import undo_flight
from velollm.autopilot import Order, chart
from velollm.autopilot.landing import journal_of, land
from velollm.backends.ollama_http import OllamaApi
from velollm.facts import Facts
from velollm.knobs import KnobValue

PINS: dict[str, KnobValue] = {"context_tokens": 1024, "batch": 256, "ubatch": 256, "slots": 2}


class Quiet:
    """A cockpit that shows nothing."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def ask(self, question: str) -> bool:
        return False


def end_at(number: int, when: str) -> None:
    """From now on, end this process for good before or after that changing call."""
    calls = 0

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: OllamaApi, path: str, body: dict[str, object], **options: Any) -> Any:
            nonlocal calls
            calls += path != "/api/show"
            mine = path != "/api/show" and calls == number
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(self, path, body, **options)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in ("post", "delete"):
        setattr(OllamaApi, name, watched(getattr(OllamaApi, name)))


def main() -> None:
    action, number, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    order = Order("tiny-python", "ollama", pins=PINS, probe=lambda: Facts(gpus=()))
    course = chart(order, Quiet())
    if action == "apply":
        end_at(number, when)
    land(course, course.plan, "a test")
    if action == "undo":
        end_at(number, when)
    undo_flight(journal_of(order.paths))


if __name__ == "__main__":
    main()
