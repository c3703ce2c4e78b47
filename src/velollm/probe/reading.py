"""One reader's view of a GPU, and how several views become one.

Each reader gives `Reading` values; `merge` lays them over each other. Readers come in the order of trust:
what an earlier one said stays, a later one fills the gaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from velollm.facts import GpuFacts, MigDevice
from velollm.units import MIB

_PCI = re.compile(r"^(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])$")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_DIGITS_LIMIT = 18
_NOT_GIVEN = {"", "n/a", "not supported", "unknown", "none", "unknown error", "err!", "insufficient permissions"}
_MASK = re.compile(r"[X0]+")


@dataclass(frozen=True)
class Reading:
    """What one reader says of one GPU; ``index`` is its place in that vendor's own order."""

    facts: GpuFacts
    source: str
    index: int | None = None
    uuid: str | None = None


def given(text: str | None) -> str | None:
    """A tool's cell as text; None for its words for "nothing" (``N/A``, ``[N/A]``, ``[Not Supported]``)."""
    if text is None:
        return None
    clean = _unbracketed(text)
    return None if clean.lower() in _NOT_GIVEN else clean


def unsupported(text: str | None) -> bool:
    """Is this the answer of an NVIDIA tool about memory that the GPU does not own?

    GPUs that share main memory (GB10, Jetson) print ``[N/A]`` or ``Not Supported`` where a card prints its size.
    """
    return text is not None and _unbracketed(text).lower() in {"n/a", "not supported"}


def _unbracketed(text: str) -> str:
    clean = text.strip()
    return clean[1:-1].strip() if clean.startswith("[") and clean.endswith("]") else clean


def number(text: str | None) -> float | None:
    """First number of a cell such as ``700.00 W`` or ``16x``; None where there is none."""
    cell = given(text)
    match = _NUMBER.search(cell) if cell else None
    return float(match.group()) if match and len(match.group()) <= _DIGITS_LIMIT else None


def whole(text: str | None) -> int | None:
    value = number(text)
    return None if value is None else int(value)


def mebibytes(text: str | None) -> int | None:
    """Bytes of a cell in MiB, with or without its unit (``81559 MiB``, ``81559``)."""
    value = whole(text)
    return None if value is None or value < 0 else value * MIB


def short_pci(text: str | None) -> str | None:
    """PCI address with the domain in four digits, as Linux writes it; the case is kept."""
    match = _PCI.match((given(text) or "").strip())
    if match is None:
        return None
    domain = (match.group(1) or "0000").rjust(8, "0")
    return f"{domain[4:] if domain[:4] == '0000' else domain}:{match.group(2)}"


def real_uuid(text: str | None) -> str | None:
    """A UUID that can tell two GPUs apart: masked ones (all X or all 0) cannot."""
    clean = given(text)
    if clean is None or "-" not in clean:
        return None
    digits = clean.split("-", 1)[1].replace("-", "")
    return None if not digits or _MASK.fullmatch(digits) else clean


def _same(one: Reading, other: Reading) -> bool:
    if one.facts.vendor != other.facts.vendor:
        return False
    if one.facts.pci and other.facts.pci:
        return one.facts.pci.lower() == other.facts.pci.lower()
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    return one.index is not None and one.index == other.index


def _merged_mig(
    first: tuple[MigDevice, ...] | None, second: tuple[MigDevice, ...] | None
) -> tuple[MigDevice, ...] | None:
    if not first or not second or len(first) != len(second):
        return second if first is None else first
    return tuple(
        MigDevice(profile=a.profile or b.profile, vram_bytes=b.vram_bytes if a.vram_bytes is None else a.vram_bytes)
        for a, b in zip(first, second, strict=True)
    )


def _laid_over(first: GpuFacts, second: GpuFacts) -> GpuFacts:
    gaps = {
        name: getattr(second, name)
        for name in GpuFacts.field_names()
        if getattr(first, name) is None and getattr(second, name) is not None
    }
    if first.pcie and second.pcie:
        gaps["pcie"] = first.pcie.model_copy(
            update={n: v for n, v in second.pcie.model_dump().items() if getattr(first.pcie, n) is None}
        )
    gaps["mig_devices"] = _merged_mig(first.mig_devices, second.mig_devices)
    return first.model_copy(update=gaps)


class Merger:
    """GPUs found so far, and for each of their values who said it."""

    def __init__(self) -> None:
        self._seen: list[Reading] = []
        self._said: list[dict[str, str]] = []

    def add(self, readings: Iterable[Reading], *, may_add: bool = True) -> None:
        """Lay one reader's GPUs over what is there.

        With ``may_add`` False the reader only fills gaps where its vendor is known already: a PCI list names
        cards that the driver does not offer to this process.
        """
        known = {seen.facts.vendor for seen in self._seen}
        for reading in readings:
            place = self._place_of(reading)
            if place is not None:
                self._fill(place, reading)
            elif reading.facts.vendor not in known or (may_add and _has_place(reading)):
                self._seen.append(reading)
                self._said.append(dict.fromkeys(_named(reading.facts), reading.source))

    def note(self, facts: GpuFacts, source: str) -> None:
        """Fill the gaps of all GPUs of one vendor with what holds for each of them, such as the driver's version."""
        for place, seen in enumerate(self._seen):
            if seen.facts.vendor == facts.vendor:
                self._fill(place, Reading(facts, source))

    def _place_of(self, reading: Reading) -> int | None:
        for place, seen in enumerate(self._seen):
            if _same(seen, reading):
                return place
        if reading.facts.pci is None and reading.index is None:
            mine = [place for place, seen in enumerate(self._seen) if seen.facts.vendor == reading.facts.vendor]
            return mine[0] if len(mine) == 1 else None
        return None

    def _fill(self, place: int, reading: Reading) -> None:
        seen = self._seen[place]
        facts = _laid_over(seen.facts, reading.facts)
        self._seen[place] = Reading(facts, seen.source, seen.index, seen.uuid or reading.uuid)
        for name in _named(facts):
            self._said[place].setdefault(name, reading.source)

    def has(self, vendor: str) -> bool:
        return any(seen.facts.vendor == vendor for seen in self._seen)

    def facts(self) -> tuple[GpuFacts, ...]:
        return tuple(seen.facts for seen in self._seen)

    def sources(self) -> dict[str, str]:
        """Path of each value (``gpus.0.vram_bytes``) to the reader that gave it."""
        return {
            f"gpus.{place}.{name}": source for place, said in enumerate(self._said) for name, source in said.items()
        }


def _has_place(reading: Reading) -> bool:
    return reading.facts.pci is not None or reading.index is not None


def _named(facts: GpuFacts) -> Sequence[str]:
    return [name for name in GpuFacts.field_names() if getattr(facts, name) is not None]
