"""How much memory a server's processes have held at most."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from velollm.backends.base import RunningServer

_VM_HWM = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class ServerProcesses:
    """The processes of a server as they were when it started: are they alive, and what did they hold?"""

    def __init__(self, server: RunningServer) -> None:
        self._roots: list[psutil.Process] = []
        self._peak_bytes: int | None = None
        pids = server.pids()
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                self._roots.append(psutil.Process(pid))
        self._visible = bool(pids)

    def all_ended(self) -> bool:
        """Are the server's processes known and all of them gone? False where they are not ours to see."""
        return self._visible and not any(_is_alive(process) for process in self._roots)

    def read_peak_bytes(self) -> int | None:
        """The most that the processes and their children have held together up to now.

        On Linux the sum of each process's own high-water mark (`VmHWM`), so nothing between two readings is
        missed; elsewhere the largest sum seen at any reading. Pages shared by two processes count twice.
        """
        found = [_read_process_peak(process) for root in self._roots for process in _with_children(root)]
        known = [peak for peak in found if peak is not None]
        if known:
            self._peak_bytes = max(sum(known), self._peak_bytes or 0)
        return self._peak_bytes


def parse_vm_hwm(text: str) -> int | None:
    """Peak resident bytes of a `/proc/PID/status`; None where it does not say."""
    match = _VM_HWM.search(text)
    return int(match.group(1)) * 1024 if match else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _with_children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return [root]


def _read_process_peak(process: psutil.Process) -> int | None:
    readers: tuple[Callable[[psutil.Process], int | None], ...] = (_read_vm_hwm, _read_resident)
    for reader in readers:
        with contextlib.suppress(psutil.Error, OSError):
            if (peak := reader(process)) is not None:
                return peak
    return None


def _read_vm_hwm(process: psutil.Process) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    return parse_vm_hwm(Path(f"/proc/{process.pid}/status").read_text())


def _read_resident(process: psutil.Process) -> int | None:
    memory = process.memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))
