"""A machine that is not this one: a captured folder, or a few lines that describe it.

```yaml
- 16 GB RAM, RTX 4070 12 GB
```

or with keys: ``ram``, ``available``, ``gpus`` (or ``gpu``), ``cpu``, ``cores``, ``threads``, ``bandwidth``, ``os``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts, GpuFacts, MemoryFacts
from velollm.probe.described import (
    Described,
    NotUnderstoodError,
    parse_gpu,
    parse_phrase,
    parse_size,
    parse_speed,
    parse_transfers,
)
from velollm.probe.machine import probe_capture

_FILE_LIMIT_BYTES = 64 * 1024
_HINT = "for example `16 GB RAM, RTX 4070 12 GB`, or keys: ram, gpus, cpu, cores, threads, bandwidth, os"
_KEYS = {
    "ram": "ram", "memory": "ram", "available": "available", "gpu": "gpus", "gpus": "gpus", "cpu": "cpu",
    "cores": "cores", "threads": "threads", "bandwidth": "bandwidth", "memory_bandwidth": "bandwidth", "os": "os",
    "machine": "machine",
}  # fmt: skip
_MOST_COUNT = 4096


def read_hardware(path: Path) -> Facts:
    """Facts of the machine that a capture folder or a description file tells of.

    What a description does not name is unknown, but for GPUs: a machine that names none has none. `Facts.sources`
    says where each value stands.

    Raises:
        VeloError: the path cannot be read, or something in it is not understood; the message says what.
    """
    if path.is_dir():
        return probe_capture(path)
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not text"
        raise VeloError(f"cannot read the hardware file {path}: {reason}", _HINT) from error
    if len(text) > _FILE_LIMIT_BYTES:
        raise VeloError(f"the hardware file {path} is longer than 64 KiB", _HINT)
    return parse_hardware(text, str(path))


def parse_hardware(text: str, place: str = "hardware") -> Facts:
    """Facts of a described machine; ``place`` names the text in sources and messages.

    Raises:
        VeloError: something is not understood, or nothing is described.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        raise VeloError(f"{place} is no YAML: {first}", _HINT) from error
    machine = Described()
    try:
        # YAML joins the lines of a plain text, so those are taken from the text itself.
        _take(machine, _without_comments(text) if isinstance(document, str) else document, place)
    except NotUnderstoodError as error:
        raise VeloError(f"{place}: {error}", error.hint or _HINT) from error
    if machine.is_empty:
        raise VeloError(f"{place} describes no machine", _HINT)
    return _facts(machine, place)


def _without_comments(text: str) -> str:
    return "\n".join(line.split(" #")[0] if not line.lstrip().startswith("#") else "" for line in text.splitlines())


def _take(machine: Described, document: Any, place: str) -> None:
    if isinstance(document, str):
        for number, line in enumerate(document.splitlines(), 1):
            parse_phrase(machine, line, f"{place}, line {number}")
    elif isinstance(document, list):
        for number, item in enumerate(document, 1):
            if not isinstance(item, str | dict):
                raise NotUnderstoodError(f"item {number} is neither text nor keys")
            _take(machine, item, f"{place}, item {number}")
    elif isinstance(document, dict):
        for key, value in document.items():
            _take_key(machine, str(key), value, f"{place}, key {key}")
    elif document is not None:
        raise NotUnderstoodError(f"'{document}' is no description of a machine")


def _take_key(machine: Described, key: str, value: Any, place: str) -> None:
    name = _KEYS.get(key.strip().lower().replace(" ", "_").replace("-", "_"))
    if name is None:
        raise NotUnderstoodError(f"there is no key '{key}'", f"keys: {', '.join(sorted(_KEYS))}")
    if name == "gpus":
        _take_gpus(machine, value, place)
    elif name in ("cores", "threads"):
        machine.set(name, _count(key, value), place)
    elif name in ("ram", "available"):
        size = parse_size(str(value))
        if size is None:
            raise NotUnderstoodError(f"'{key}' takes a size with its unit, not '{value}'", "for example `ram: 16 GB`")
        machine.set(name, size, place)
    elif name == "bandwidth":
        speed = parse_speed(str(value)) or parse_transfers(str(value))
        if speed is None:
            raise NotUnderstoodError(
                f"'{key}' takes bytes a second, not '{value}'",
                "for example `bandwidth: 51.2 GB/s`, or `DDR5-5200 dual channel`",
            )
        machine.set(name, speed, place)
    elif name == "cpu" and isinstance(value, str):
        machine.set("cpu", value.strip(), place)
    elif isinstance(value, str):
        parse_phrase(machine, value, place)
    else:
        raise NotUnderstoodError(f"'{key}' takes text, not '{value}'")


def _take_gpus(machine: Described, value: Any, place: str) -> None:
    items = value if isinstance(value, list) else [value]
    machine.no_gpu = place
    for item in items:
        if isinstance(item, dict):
            machine.gpus += _gpu_of_keys(item, place)
        elif isinstance(item, str) and item.strip():
            if item.strip().lower() not in ("none", "no"):
                machine.gpus += parse_gpu(item, place)
        elif item not in (None, False):
            raise NotUnderstoodError(f"'{item}' is no GPU", "for example `gpus: [RTX 4070 12 GB]`")


def _gpu_of_keys(item: dict[Any, Any], place: str) -> list[tuple[GpuFacts, str]]:
    unknown = {str(key) for key in item} - {"name", "memory", "vram", "bandwidth", "count"}
    if unknown or not isinstance(item.get("name"), str):
        raise NotUnderstoodError(
            f"a GPU takes the keys name, memory, bandwidth and count, not {', '.join(sorted(unknown)) or 'no name'}"
        )
    size_text = item.get("memory", item.get("vram"))
    size = None if size_text is None else parse_size(str(size_text))
    speed = None if item.get("bandwidth") is None else parse_speed(str(item["bandwidth"]))
    if (size is None) != (size_text is None) or (speed is None) != (item.get("bandwidth") is None):
        raise NotUnderstoodError(f"'{item['name']}' has a size or a bandwidth without a unit")
    count = _count("count", item.get("count", 1))
    gpu = GpuFacts(name=item["name"].strip(), vram_bytes=size, memory_bandwidth_bytes_per_s=speed)
    return [(gpu, place)] * count


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_COUNT:
        raise NotUnderstoodError(f"'{key}' takes a whole number from 1 on, not '{value}'")
    return value


def _facts(machine: Described, place: str) -> Facts:
    values, sources = machine.values, dict(machine.sources)
    gpus = tuple(gpu for gpu, _ in machine.gpus)
    for index, (gpu, where) in enumerate(machine.gpus):
        sources.update({f"gpus.{index}.{key}": where for key in gpu.model_dump(exclude_none=True)})
    if not gpus:
        sources["gpus"] = machine.no_gpu or f"{place} names none"
    cores, threads = values.get("cores"), values.get("threads")
    cpu = CpuFacts(
        model_name=values.get("cpu"),
        physical_cores=cores,
        usable_physical_cores=cores,
        logical_cores=threads,
        usable_cores=threads or cores,
        threads_per_core=threads // cores if cores and threads and threads % cores == 0 else None,
    )
    memory = MemoryFacts(
        total_bytes=values.get("ram"),
        available_bytes=values.get("available"),
        bandwidth_bytes_per_s=values.get("bandwidth"),
    )
    unified = values.get("unified")
    return Facts(
        os=values.get("os"), cpu=cpu, memory=memory, gpus=gpus, unified_memory=unified, sources=_paths(sources)
    )


_PATHS = {
    "ram": ("memory.total_bytes",),
    "available": ("memory.available_bytes",),
    "bandwidth": ("memory.bandwidth_bytes_per_s",),
    "cores": ("cpu.physical_cores", "cpu.usable_physical_cores"),
    "threads": ("cpu.logical_cores", "cpu.usable_cores"),
    "cpu": ("cpu.model_name",),
    "unified": ("unified_memory",),
}


def _paths(sources: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, where in sources.items():
        found.update(dict.fromkeys(_PATHS.get(key, (key,)), where))
    if "cores" in sources:
        found.setdefault("cpu.usable_cores", sources["cores"])
    if "cores" in sources and "threads" in sources:
        found["cpu.threads_per_core"] = f"{sources['threads']}, by the cores"
    return found
