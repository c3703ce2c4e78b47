"""Words that people describe a machine with: `16 GB RAM`, `2 x RTX 3090`, `MacBook Air M2 24GB`, `8 cores`, `Linux`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from velollm.facts import GpuFacts
from velollm.units import GIB

# Memory is sold in powers of 1024, whatever the letters on the box say.
_SIZE = re.compile(r"(?<![\w.-])(\d{1,6}(?:\.\d{1,3})?)\s*(MB|MiB|GB|GiB|G|TB|TiB)\b(?!/s)", re.IGNORECASE)
_SPEED = re.compile(r"(?<![\w.])(\d{1,6}(?:\.\d{1,3})?)\s*(GB|TB|GiB)\s*(?:/\s*s|ps)\b", re.IGNORECASE)
_UNITS = {"m": 1 / 1024, "g": 1, "t": 1024}
_SPEED_UNITS = {"gb": 1e9, "tb": 1e12, "gib": 2**30}
_COUNT = re.compile(r"^\s*(\d{1,3})\s*[x×*]\s*(?=\D)|\s+[x×*]\s*(\d{1,3})\s*$", re.IGNORECASE)
_APPLE = re.compile(r"\b(M[1-9])(?:[ -]?(Pro|Max|Ultra))?\b(?![-\w])", re.IGNORECASE)
_APPLE_WORDS = re.compile(
    r"\b(?:apple|macbook|mac|imac|mini|studio|air|pro|max|ultra|with|chip|silicon|memory|ram|unified|of)\b",
    re.IGNORECASE,
)
_MAC = re.compile(r"\b(?:apple|macbook|imac|mac)\b", re.IGNORECASE)
_GPU_CORES = re.compile(r"\b(\d{1,2})[- ]core\s+gpu\b", re.IGNORECASE)
_GPU = re.compile(
    r"\b(?:nvidia|geforce|rtx|gtx|quadro|tesla|titan|radeon|rx\s?\d{3,4}|instinct|mi\d{2,3}x?|arc|iris|uhd|adreno|jetson"
    r"|[abhlptv]\d{1,3}[a-z]?|gb10|gb200|dgx|vega|8[06]\d0s|[6-8][689]0m)\b|\brtx\d|\brx\d",
    re.IGNORECASE,
)
_ALIASES = ((re.compile(r"^(?:nvidia\s+)?dgx spark\b", re.IGNORECASE), "NVIDIA GB10"),)
_CPU = re.compile(
    r"\b(?:ryzen|threadripper|epyc|xeon|core i[3579]|core ultra|i[3579]-\d|celeron|pentium|cortex|snapdragon|graviton"
    r"|raspberry|intel n\d|n100|athlon)",
    re.IGNORECASE,
)
_RAM_WORDS = re.compile(
    r"\b(?:ram|memory|ddr[2-6]\w*|lpddr[2-6]\w*|main|system|of|unified|shared|with|a|an"
    r"|laptop|notebook|desktop|workstation|server|pc)\b",
    re.IGNORECASE,
)
_RATE = re.compile(r"\b(?:lp)?ddr[2-6]x?-(\d{3,5})\b", re.IGNORECASE)
_CHANNELS = re.compile(r"\b(single|dual|quad|\d{1,2})[- ]channels?\b", re.IGNORECASE)
_CHANNEL_WORDS = {"single": 1, "dual": 2, "quad": 4}
_CHANNEL_BYTES = 8
_CORES = re.compile(r"\b(\d{1,4})[- ]?(?:physical\s+)?(?:core|cpu)s?\b(?:\s+cpu)?", re.IGNORECASE)
_THREADS = re.compile(r"\b(\d{1,4})[- ]?threads?\b", re.IGNORECASE)
_OS = {
    "linux": "linux",
    "ubuntu": "linux",
    "debian": "linux",
    "fedora": "linux",
    "windows": "windows",
    "macos": "macos",
}
_NO_GPU = re.compile(r"^(?:no (?:gpu|graphics card)s?|cpu[ -]only|without (?:a )?gpu)$", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;+\n]|\band\b", re.IGNORECASE)


class NotUnderstoodError(ValueError):
    """A word of a description that says nothing to us."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class Described:
    """What was read of a description so far, and where each value stands."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    gpus: list[tuple[GpuFacts, str]] = field(default_factory=list)
    no_gpu: str | None = None

    @property
    def is_empty(self) -> bool:
        """Was nothing of a machine named?"""
        return not (self.values or self.gpus or self.no_gpu)

    def set(self, name: str, value: Any, place: str) -> None:
        """Take a value; two different ones for the same thing are an error."""
        if self.values.get(name, value) != value:
            raise NotUnderstoodError(f"two values for {name}: {self.values[name]} and {value}")
        self.values[name] = value
        self.sources[name] = place


def parse_size(text: str) -> int | None:
    """Bytes of a memory size such as ``16 GB``; None where it is none. Powers of 1024, as memory is sold."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else _bytes_of(match)


def _bytes_of(match: re.Match[str]) -> int:
    return round(float(match.group(1)) * _UNITS[match.group(2)[0].lower()] * GIB)


def parse_speed(text: str) -> int | None:
    """Bytes a second of ``51.2 GB/s``; None where it is no speed. Decimal, as vendors give it."""
    match = _SPEED.fullmatch(text.strip())
    return None if match is None else _speed_of(match)


def parse_transfers(text: str) -> int | None:
    """Bytes a second of memory modules, as ``DDR5-5200 dual channel``: transfers x 8 bytes x channels."""
    rate, channels = _RATE.search(text), _CHANNELS.search(text)
    if rate is None or channels is None:
        return None
    ways = _CHANNEL_WORDS.get(channels.group(1).lower()) or int(channels.group(1))
    return int(rate.group(1)) * 1_000_000 * _CHANNEL_BYTES * ways


def _speed_of(match: re.Match[str]) -> int:
    return round(float(match.group(1)) * _SPEED_UNITS[match.group(2).lower()])


def parse_phrase(machine: Described, text: str, place: str) -> None:
    """Take what a line says, piece by piece.

    Raises:
        NotUnderstoodError: a piece says nothing of a machine.
    """
    for piece in _SEPARATOR.split(text):
        words = piece.strip().strip(".")
        if words:
            _take_piece(machine, words, place)


def _take_piece(machine: Described, words: str, place: str) -> None:
    if _NO_GPU.match(words):
        machine.no_gpu = place
    elif _is_apple(words):
        _take_apple(machine, words, place)
    elif _CPU.search(words):
        _take_cpu(machine, words, place)
    elif _GPU.search(words):
        machine.gpus += parse_gpu(words, place)
    elif (system := _OS.get(words.split()[0].lower())) is not None:
        machine.set("os", system, place)
    else:
        _take_numbers(machine, words, place)


def _is_apple(words: str) -> bool:
    """Is every word of this one of an Apple machine? (`M40` and `M2` alone are told apart by the pattern.)"""
    if _APPLE.search(words) is None:
        return False
    rest = _APPLE.sub(" ", _GPU_CORES.sub(" ", _SIZE.sub(" ", _SPEED.sub(" ", words))))
    return bool(_MAC.search(words)) or not _APPLE_WORDS.sub(" ", rest).strip()


def _take_apple(machine: Described, words: str, place: str) -> None:
    chip = _APPLE.search(words)
    if chip is None:
        return
    name = " ".join(["Apple", chip.group(1).upper(), *([chip.group(2).capitalize()] if chip.group(2) else [])])
    cores = _GPU_CORES.search(words)
    gpu = GpuFacts(
        vendor="apple",
        name=name,
        integrated=True,
        unified_memory=True,
        gpu_cores=int(cores.group(1)) if cores else None,
    )
    machine.gpus.append((gpu, place))
    machine.set("cpu", name, place)
    machine.set("os", "macos", place)
    machine.set("unified", True, place)
    if (size := _SIZE.search(words)) is not None:
        machine.set("ram", _bytes_of(size), place)
    if (speed := _SPEED.search(words)) is not None:
        machine.set("bandwidth", _speed_of(speed), place)


def _take_cpu(machine: Described, words: str, place: str) -> None:
    rest = words
    for pattern, name in ((_THREADS, "threads"), (_CORES, "cores")):
        if (match := pattern.search(rest)) is not None:
            machine.set(name, int(match.group(1)), place)
            rest = pattern.sub(" ", rest)
    if (size := _SIZE.search(rest)) is not None:
        machine.set("ram", _bytes_of(size), place)
        rest = _RAM_WORDS.sub(" ", _SIZE.sub(" ", rest))
    machine.set("cpu", " ".join(rest.split()), place)


def _take_numbers(machine: Described, words: str, place: str) -> None:
    """Main memory, its speed, cores: phrases of numbers with units."""
    rest = words
    taken = False
    if (speed := _SPEED.search(rest)) is not None:
        machine.set("bandwidth", _speed_of(speed), place)
        rest, taken = _SPEED.sub(" ", rest).replace("bandwidth", " "), True
    if (transfers := parse_transfers(rest)) is not None:
        machine.set("bandwidth", transfers, f"{place}: transfers x 8 bytes x channels")
        taken = True
    rest = _RATE.sub(" ", _CHANNELS.sub(" ", rest))
    size = _SIZE.search(rest)
    if size is not None and (_RAM_WORDS.search(words) or taken):
        machine.set("ram", _bytes_of(size), place)
        rest, taken = _SIZE.sub(" ", rest, count=1), True
    for pattern, name in ((_THREADS, "threads"), (_CORES, "cores")):
        if (match := pattern.search(rest)) is not None:
            machine.set(name, int(match.group(1)), place)
            rest, taken = pattern.sub(" ", rest), True
    left = " ".join(_RAM_WORDS.sub(" ", rest).split())
    if not taken or left:
        hint = "say what it is: `16 GB RAM`" if size is not None and not taken else ""
        raise NotUnderstoodError(f"'{left or words}' is not understood", hint)


def parse_gpu(text: str, place: str) -> list[tuple[GpuFacts, str]]:
    """GPUs of a phrase such as ``2 x RTX 3090 24 GB``, each with the place where it stands.

    Raises:
        NotUnderstoodError: the phrase names no GPU, or too many.
    """
    count_match = _COUNT.search(text)
    count = int(count_match.group(1) or count_match.group(2)) if count_match else 1
    rest = _COUNT.sub(" ", text, count=1)
    size, speed = _SIZE.search(rest), _SPEED.search(rest)
    if len(_SIZE.findall(rest)) > 1:
        raise NotUnderstoodError(f"'{text.strip()}' has two sizes", "put a comma between main memory and the GPU")
    rest = _SIZE.sub(" ", _SPEED.sub(" ", rest))
    name = " ".join(re.sub(r"\b(?:with|of|each|vram|memory)\b", " ", rest, flags=re.IGNORECASE).split())
    for pattern, known in _ALIASES:
        name = known if pattern.match(name) else name
    if not name or not 0 < count <= 64:
        raise NotUnderstoodError(f"'{text.strip()}' is no GPU", "for example `2 x RTX 3090 24 GB`")
    gpu = GpuFacts(
        name=name,
        vram_bytes=_bytes_of(size) if size else None,
        memory_bandwidth_bytes_per_s=_speed_of(speed) if speed else None,
    )
    return [(gpu, place)] * count
