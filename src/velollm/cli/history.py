"""`velollm history`: the flights so far."""

from __future__ import annotations

from velollm.cli.shared import JsonOption, console, print_json


def command(json_: JsonOption = False) -> None:
    """List the flights so far: when, which model, what was set, whether it was undone.

    Example: velollm history
    """
    from velollm.autopilot import flights

    found = flights()
    if json_:
        from velollm.report.documents import flight_fields

        print_json({"flights": [flight_fields(flight) for flight in found]})
        return
    from velollm.report.terminal import render_history

    console().print(render_history(found))
