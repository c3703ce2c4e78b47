"""`velollm undo`: put back, byte for byte, what a flight changed."""

from __future__ import annotations

from typing import Annotated

import typer

from velollm.cli.shared import JsonOption, console, meter, print_json


def command(
    flight: Annotated[
        str | None,
        typer.Argument(metavar="[FLIGHT]", help="Id of a flight; without one, the latest that changed anything."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Put back, byte for byte, what a flight changed.

    What somebody else has changed since is left alone and named. With nothing to undo it says so.

    Example: velollm undo
    """
    from velollm.autopilot import undo

    with meter(assume=True) as cockpit:
        result = undo(flight, cockpit=cockpit)
    if json_:
        from velollm.report.documents import undo_fields

        print_json(undo_fields(result))
        return
    from velollm.report.terminal import render_undo

    console().print(render_undo(result), soft_wrap=True)
