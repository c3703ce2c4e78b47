"""Runs a program and ends its whole process group when standard input closes.

Run as a script of its own, with the program and its arguments: for engines that would outlive us if we were
killed. The group is the guard's own, which its starter made.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def guarded(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` under the guard; by file, so that it works in any environment."""
    return [sys.executable, os.path.abspath(__file__), *argv]  # noqa: PTH100 - no pathlib in so small a program


def _watch() -> None:
    sys.stdin.buffer.read()
    if sys.platform == "win32":
        os._exit(1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Start the program, pass SIGTERM on, leave with its status (128 + N where signal N ended it)."""
    threading.Thread(target=_watch, daemon=True).start()
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
