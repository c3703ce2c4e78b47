"""Machine name (`uname -m`), of whatever tells it."""

from __future__ import annotations

import re

from velollm.probe.source import Source

_NAMES = re.compile(
    r"(?<![A-Za-z0-9])(x86_64|aarch64|arm64|armv[67]l|i[3-6]86|ppc64le|ppc64|riscv64|s390x|loongarch64)(?![A-Za-z0-9])"
)
# `kernel` is a captured line of a report (`Kernel: 6.6.20-rpi/aarch64`), not a program.
_COMMANDS = (("uname", "-m"), ("uname", "-a"), ("arch",), ("kernel",), ("hostnamectl",))


def read_architecture(source: Source) -> tuple[str | None, str]:
    """Name as `uname -m` prints it, and where it was read; None where nothing tells."""
    for argv in _COMMANDS[:1] if source.live else _COMMANDS:
        match = _NAMES.search(source.run(argv) or "")
        if match is not None:
            return match.group(1), " ".join(argv)
    return None, ""
