"""`velollm run`: the engine with the settings that a flight applied."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from velollm.cli.shared import (
    BackendOption,
    JsonOption,
    ModelArgument,
    SetOption,
    console,
    meter,
    parse_pins,
    print_json,
)
from velollm.errors import VeloError


def command(
    model: ModelArgument = None,
    backend: BackendOption = "auto",
    port: Annotated[int, typer.Option("--port", help="Port on loopback; 0 lets the system choose a free one.")] = 0,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Run the engine on loopback with the settings that `velollm optimize` applied, until Ctrl-C.

    It speaks the OpenAI interface under /v1.

    Example: velollm run model.gguf --port 8080
    """
    from contextlib import ExitStack

    from velollm.autopilot import Order, serve
    from velollm.report.terminal import render_knobs

    with ExitStack() as stack:
        with meter() as cockpit:
            service = stack.enter_context(serve(Order(model, backend, pins=parse_pins(set_)), cockpit, port=port))
        if json_:
            print_json({"model": service.model.name, "url": service.server.url, "knobs": dict(service.knobs)})
            sys.stdout.flush()
        else:
            out = console()
            out.print(f"Serving {service.model.name} on {service.server.url}/v1 until Ctrl-C.", soft_wrap=True)
            out.print(render_knobs(service.knobs), soft_wrap=True)
        try:
            status = service.server.wait()
        except KeyboardInterrupt:
            return
    raise VeloError(f"the engine ended by itself (exit status {status})", "its last lines are in engine.log")
