"""What an engine allocated, as its log says it: ``CPU_REPACK model buffer size = 512.00 MiB`` and the like.

Source: llama.cpp b10488, src/llama-model.cpp, src/llama-kv-cache.cpp, src/llama-memory-recurrent.cpp and
src/llama-context.cpp. Two digits after the point: sums are right to some 10 KiB.
"""

from __future__ import annotations

import re

from velollm.units import MIB

_LINE = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size\s*=\s*([\d.]+) MiB")
_LOAD = re.compile(r"print_info: no_alloc\s*=\s*(\d)")
_NAMES = {"model": "weights", "KV": "kv", "RS": "recurrent", "output": "output", "compute": "compute"}


def parse_buffers(log: str) -> dict[str, int]:
    """Bytes by kind over all devices: ``weights``, ``repack``, ``kv``, ``recurrent``, ``output``, ``compute``.

    Kinds that the log does not name are absent. A load that only looks at what would fit (``no_alloc``) is passed over.
    A compute buffer that is named again for the same model replaces what was said before.
    """
    found: dict[str, int] = {}
    compute: dict[tuple[int, str], int] = {}
    loads, dry = 0, False
    for line in log.splitlines():
        if started := _LOAD.search(line):
            loads, dry = loads + 1, started.group(1) != "0"
        match = _LINE.search(line)
        if match is None or dry:
            continue
        place, kind, size = match.groups()
        number = round(float(size) * MIB)
        if kind == "compute":
            compute[loads, place] = number
            continue
        name = "repack" if kind == "model" and place.endswith("REPACK") else _NAMES[kind]
        found[name] = found.get(name, 0) + number
    if compute:
        found["compute"] = sum(compute.values())
    return found
