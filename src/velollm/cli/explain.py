"""`velollm explain`: what a knob is, who sets it and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from velollm.cli.shared import JsonOption, print_json
from velollm.errors import UsageError


def command(
    knob: Annotated[str, typer.Argument(metavar="KNOB", help="Name of a knob, or of a rule.")],
    json_: JsonOption = False,
) -> None:
    """Explain a knob: what it does, whether it can change answers, and the rule that sets it.

    Example: velollm explain threads
    """
    facts = _describe(knob)
    if json_:
        print_json(facts)
        return
    from velollm.cli.shared import console
    from velollm.report.terminal import render_explanation

    console().print(render_explanation(facts))


def _describe(name: str) -> dict[str, Any]:
    from velollm.discover import collect
    from velollm.knobs import KNOBS
    from velollm.rules.base import Rule

    rules = collect("velollm.rules", "rule", Rule)
    rule = next((r for r in rules if r.id == name or name in r.sets), None)
    knob = KNOBS.get(name) or (KNOBS.get(rule.sets[0]) if rule else None)
    if knob is None:
        raise UsageError(f"there is no knob '{name}'", f"knobs: {', '.join(KNOBS)}")
    return {
        "knob": knob.name,
        "unit": knob.unit,
        "summary": knob.summary,
        "explain": knob.explain,
        "purpose": knob.purpose,
        "scope": knob.scope,
        "changes_answer": knob.changes_answer,
        "choices": list(knob.choices),
        "rule": rule.id if rule else None,
        "rule_doc": rule.doc if rule else None,
    }
