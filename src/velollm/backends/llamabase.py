"""What the two llama.cpp backends share: finding a GGUF file, and a private server around a child process."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Iterator

from velollm.backends.base import ModelRef, Progress
from velollm.backends.child import Child
from velollm.backends.llamahttp import LlamaHttp
from velollm.errors import EngineError, VeloError

LOAD_TIMEOUT_S = 300.0
# A broken connection is seen a little before the end of the process that broke it.
_DYING_S = 1.0


@contextlib.contextmanager
def serving(child: Child, model: ModelRef, progress: Progress | None = None) -> Iterator[LlamaHttp]:
    """Wait until ``child`` has loaded the model; hand out its HTTP interface; reap the whole group in the end."""
    server: LlamaHttp | None = None
    try:
        if progress:
            progress(f"loading {model.name}")
        url = child.wait_ready(LOAD_TIMEOUT_S)
        if url is None:
            raise load_failure(child, model)
        server = LlamaHttp(
            url,
            pids=(child.pid,),
            alive=lambda: child.wait_end(_DYING_S) is None,
            wait=child.wait_end,
            why=child.why_it_failed,
            log=child.read_log,
        )
        yield server
    finally:
        if server is not None:
            server.close()
        child.stop()


def refuse_taken(port: int) -> None:
    """Raise `VeloError` where something listens at this loopback port; 0 is never taken.

    Asked beforehand, because an engine's own word for it may be lost with its last log lines.
    """
    with socket.socket() as probe:
        if sys.platform != "win32":
            # As servers do: a port whose last connections are only dying is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = f"127.0.0.1:{port}: {error.strerror or error}"
            raise _taken(reason) from error


def _taken(reason: str) -> VeloError:
    return VeloError(f"the port is taken: {reason}", "stop the other program, or choose another --port")


def load_failure(child: Child, model: ModelRef) -> VeloError:
    """Why a server did not start, from its own output."""
    status = child.wait_end(1.0)
    if status is None:
        return VeloError(
            f"the engine did not load {model.name} within {LOAD_TIMEOUT_S:.0f} s", f"its log is {child.log}"
        )
    reason = child.why_it_failed()
    if re.search(r"address already in use|couldn't bind", reason):
        return _taken(reason)
    return EngineError(
        f"the engine could not load {model.name}",
        reason,
        f"check that the file is whole and fits in memory; the engine's log is {child.log}",
    )
