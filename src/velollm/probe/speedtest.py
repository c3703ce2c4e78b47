"""How fast this machine reads its main memory and multiplies: about a second of work, kept with its date.

Decoding reads every active weight once a token, and a prompt is a matter of multiplications; these two numbers bound
both. GPUs are not measured: their numbers come from the table of accelerators.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velollm.config import ensure_dir, replace_file
from velollm.errors import VeloError
from velollm.facts import Facts, Frozen
from velollm.units import MIB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FILE = "machine-speed.json"
_SCHEMA = 1
# Larger than the caches of most machines; a machine with little memory gives an eighth of what is free.
_BLOCK_BYTES = 512 * MIB
_LEAST_BYTES = 32 * MIB
_SHARE = 8
_READ_S = 0.6
_LEAST_ROUNDS = 3
_SIDE = 768
# Of the processor's time: less than this for us, and others took the rest.
_OWN_SHARE = 0.85
_MULTIPLY_S = 0.3


class MachineSpeed(Frozen):
    """What was measured: bytes a second that all ``threads`` read together, and float32 operations a second of matrix
    products. ``machine`` tells the processor and cores that it was taken on, ``taken_at`` when (UTC). ``disturbed``:
    other programs took a part of the processor meanwhile, so the real rates are higher.
    """

    schema_version: int = _SCHEMA
    machine: str
    threads: int
    block_bytes: int
    read_bytes_per_s: int
    multiply_flops: int
    taken_at: str
    elapsed_s: float
    disturbed: bool = False


def machine_speed(directory: Path, facts: Facts, *, now: Callable[[], datetime] | None = None) -> MachineSpeed | None:
    """The speed of this machine: as it was kept in ``directory``, else measured now and kept.

    It is measured anew where the processor or the usable cores are others, and a disturbed measurement is not kept.
    None where neither is possible; that it cannot be kept does no harm.
    """
    kept = read_machine_speed(directory)
    if kept is not None and kept.machine == machine_key(facts):
        return kept
    found = measure_machine_speed(facts, now=now)
    if found is not None and not found.disturbed:
        with contextlib.suppress(VeloError, OSError):
            _keep(directory, found)
    return found


def read_machine_speed(directory: Path) -> MachineSpeed | None:
    """What was kept; None where nothing was or it cannot be read."""
    try:
        return MachineSpeed.model_validate_json((directory / _FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _keep(directory: Path, speed: MachineSpeed) -> None:
    replace_file(ensure_dir(directory) / _FILE, json.dumps(speed.model_dump(), indent=2) + "\n")


def machine_key(facts: Facts) -> str:
    """Processor and usable cores, in words: a measurement holds for one of them."""
    cpu = facts.cpu
    name = cpu.model_name if cpu is not None else None
    names = ", ".join(name) if isinstance(name, tuple) else name
    return f"{names or 'unknown processor'}, {_threads(facts)} threads"


def _threads(facts: Facts) -> int:
    cpu = facts.cpu
    usable = None if cpu is None else cpu.usable_physical_cores or cpu.usable_cores
    return usable or os.cpu_count() or 1


def measure_machine_speed(
    facts: Facts, *, threads: int | None = None, now: Callable[[], datetime] | None = None
) -> MachineSpeed | None:
    """Measure reading and multiplying with a thread for each usable core, or with ``threads`` to read.

    None where memory is too short for it.
    """
    import numpy as np

    threads = threads or _threads(facts)
    free = None if facts.memory is None else facts.memory.available_bytes
    size = _BLOCK_BYTES if free is None else min(_BLOCK_BYTES, free // _SHARE)
    if size < _LEAST_BYTES:
        return None
    began = time.perf_counter()
    try:
        block = np.ones(size // 4, dtype=np.float32)
        before_s, worked_s = time.perf_counter(), time.process_time()
        read = _best_read(np.array_split(block, threads), size)
        busy = (time.process_time() - worked_s) / (threads * (time.perf_counter() - before_s))
        del block
        multiply = _best_multiply()
    except MemoryError:
        return None
    taken = (now or (lambda: datetime.now(UTC)))().astimezone(UTC)
    return MachineSpeed(
        machine=machine_key(facts),
        threads=threads,
        block_bytes=size,
        read_bytes_per_s=round(read),
        multiply_flops=round(multiply),
        taken_at=taken.isoformat(timespec="seconds"),
        elapsed_s=round(time.perf_counter() - began, 3),
        disturbed=busy < _OWN_SHARE,
    )


def _best_read(parts: Sequence[npt.NDArray[np.float32]], size: int) -> float:
    """Bytes a second of the best pass, in which each thread looks for the largest value of its part."""
    gate = threading.Barrier(len(parts) + 1)
    going = True

    def look(part: Any) -> None:
        while True:
            gate.wait()
            if not going:
                return
            part.max()
            gate.wait()

    threads = [threading.Thread(target=look, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    best, rounds, began = 0.0, 0, time.perf_counter()
    while rounds < _LEAST_ROUNDS or time.perf_counter() - began < _READ_S:
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        best = max(best, size / (time.perf_counter() - start))
        rounds += 1
    going = False
    gate.wait()
    for thread in threads:
        thread.join()
    return best


def _best_multiply() -> float:
    """Operations a second of the best float32 matrix product; the library uses all cores by itself."""
    import numpy as np

    left = np.ones((_SIDE, _SIDE), dtype=np.float32)
    best, rounds, began = 0.0, 0, time.perf_counter()
    while rounds < _LEAST_ROUNDS or time.perf_counter() - began < _MULTIPLY_S:
        start = time.perf_counter()
        left @ left
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - start))
        rounds += 1
    return best
