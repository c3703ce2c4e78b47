"""What an engine allocates for a model, from the lines that its server prints while it loads."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

from velollm.backends.buffers import parse_buffers

_LIMIT_S = 120.0


def measure(server: Path, model: Path, arguments: list[str]) -> dict[str, int]:
    """Start the server, read until it listens, end it; bytes by kind of buffer.

    Raises:
        RuntimeError: it did not load the model; its last words are in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [str(server), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-lv", "4"]
    argv += ["--fit", "off", "--no-warmup", "--threads", "1", "--no-webui", *arguments]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    timer = threading.Timer(_LIMIT_S, process.kill)
    timer.start()
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "listening on" in line:
                return parse_buffers("".join(lines))
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
    raise RuntimeError("".join(lines[-8:]))
