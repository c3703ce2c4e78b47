"""`velollm history`: the flights so far."""

from __future__ import annotations

from velollm.cli.shared import JsonOption, console, print_json


def command(json_: JsonOption = False) -> None:
    """List the flights so far: when, which model, what was changed, whether it was undone.

    Example: velollm history
    """
    from velollm.autopilot import flights

    rows = flights()
    if json_:
        print_json({"flights": [row.to_json() for row in rows]})
        return
    from velollm.report.terminal import render_history

    console().print(render_history(rows))
