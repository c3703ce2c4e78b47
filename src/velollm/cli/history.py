"""`velollm history`: the flights so far."""

from __future__ import annotations

from typing import Annotated

import typer

from velollm.cli.shared import JsonOption, console, print_json


def command(
    flight: Annotated[
        str | None, typer.Argument(metavar="[FLIGHT]", help="Id of a flight, to see the whole of it.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the flights so far: when, which model, what was set, whether it was undone.

    With the id of a flight: its plan, its verdict, and what was written, before and after.

    Example: velollm history
    """
    if flight is not None:
        _show(flight, json_=json_)
        return
    from velollm.autopilot import flights

    found = flights()
    if json_:
        from velollm.report.documents import flight_fields

        print_json({"flights": [flight_fields(flight) for flight in found]})
        return
    from velollm.report.flights import render_history

    console().print(render_history(found))


def _show(flight_id: str, *, json_: bool) -> None:
    from velollm.autopilot import find_flight

    found = find_flight(flight_id)
    if json_:
        from velollm.report.documents import flight_fields

        print_json(flight_fields(found))
        return
    from velollm.report.flights import render_flight

    console().print(render_flight(found))
