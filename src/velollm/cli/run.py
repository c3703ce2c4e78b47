"""`velollm run`: an engine or a server with the settings that flights applied."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from velollm.cli.shared import BackendOption, JsonOption, SetOption, console, meter, parse_pins, print_json
from velollm.errors import VeloError


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] | -- COMMAND…", help="A model for the engine; or, after --, a server's command."
        ),
    ] = None,
    backend: BackendOption = "auto",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on loopback; 0 lets the system choose a free one.")
    ] = 0,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Run an engine or a server with the settings that `velollm optimize` applied, until Ctrl-C.

    With a model: the engine on loopback, which speaks the OpenAI interface under /v1. With a command after --: that
    server, with the applied environment; a flight restarts it when a change needs that, and undo does too.

    Example: velollm run -- ollama serve
    """
    if words and len(words) > 1:
        raise typer.Exit(_run_server(words))
    _run_engine(words[0] if words else None, backend, port, set_, json_=json_)


def _run_server(argv: list[str]) -> int:
    from velollm.autopilot import run_server

    try:
        return run_server(argv)
    except KeyboardInterrupt:
        return 0


def _run_engine(model: str | None, backend: str, port: int, set_: list[str] | None, *, json_: bool) -> None:
    from contextlib import ExitStack

    from velollm.autopilot import Order, serve
    from velollm.report.terminal import render_knobs

    with ExitStack() as stack:
        with meter() as cockpit:
            service = stack.enter_context(serve(Order(model, backend, pins=parse_pins(set_)), cockpit, port=port))
        try:
            if json_:
                print_json({"model": service.model.name, "url": service.server.url, "knobs": dict(service.knobs)})
                sys.stdout.flush()
            else:
                out = console()
                out.print(f"Serving {service.model.name} on {service.server.url}/v1 until Ctrl-C.", soft_wrap=True)
                out.print(render_knobs(service.knobs), soft_wrap=True)
            status = service.server.wait()
        except KeyboardInterrupt:
            return
    raise VeloError(f"the engine ended by itself (exit status {status})", f"its log is {service.log}")
