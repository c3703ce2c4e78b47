"""GPUs of a Mac: ``system_profiler SPDisplaysDataType`` and ``sysctl``. Apple's own share all memory with the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from velollm.facts import GpuFacts
from velollm.probe.intel import is_integrated
from velollm.probe.reading import Merger, Reading, given, whole
from velollm.probe.source import Source, TextSource
from velollm.units import MIB, parse_bytes

_PROFILER = ("system_profiler", "SPDisplaysDataType", "-json")
_LIMIT = re.compile(r"^iogpu\.wired_limit_mb\s*[:=]\s*(\d{1,9})\s*$", re.MULTILINE)
_VENDORS = {"apple": "apple", "amd": "amd", "ati": "amd", "intel": "intel", "nvidia": "nvidia"}


def read_apple(source: Source, merger: Merger) -> bool:
    """Add a Mac's GPUs to ``merger``; True where the profiler was read, whatever it found."""
    seen = False
    limit = wired_limit(source)
    for text in _texts(source):
        readings = parse_profiler_json(text)
        if readings is None:
            readings = parse_profiler_text(text)
        if readings is None:
            continue
        seen = True
        merger.add(
            Reading(r.facts.model_copy(update={"largest_usable_bytes": limit}), r.source, r.index)
            if r.facts.vendor == "apple"
            else r
            for r in readings
        )
    return seen


def _texts(source: Source) -> Iterator[str]:
    if isinstance(source, TextSource):
        yield from source.commands.values()
        return
    text = source.run(_PROFILER) if source.read("/System/Library/CoreServices/SystemVersion.plist") else None
    if text is not None:
        yield text


def wired_limit(source: Source) -> int | None:
    """Bytes that Metal may wire, where somebody set ``iogpu.wired_limit_mb``; 0 is the default, which is not told."""
    if source.live:
        text = source.run(["sysctl", "iogpu.wired_limit_mb"]) or ""
    else:
        text = "\n".join(source.commands.values()) if isinstance(source, TextSource) else ""
    match = _LIMIT.search(text)
    return int(match.group(1)) * MIB or None if match else None


def parse_profiler_json(text: str) -> tuple[Reading, ...] | None:
    """GPUs of ``system_profiler SPDisplaysDataType -json``; None where it is no such document.

    The members of ``spdisplays_ndrvs`` are screens, not GPUs.
    """
    if "SPDisplaysDataType" not in text:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    entries = document.get("SPDisplaysDataType") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return None
    found = [_json_reading(e, i) for i, e in enumerate(e for e in entries if isinstance(e, dict))]
    return tuple(reading for reading in found if reading is not None)


def _json_reading(entry: Mapping[str, Any], index: int) -> Reading | None:
    def value(*names: str) -> str | None:
        return next((given(str(entry[name])) for name in names if entry.get(name)), None)

    name = value("sppci_model", "_name")
    vendor = _vendor(f"{value('spdisplays_vendor') or ''} {name or ''}")
    if vendor is None:
        return None
    metal = value("spdisplays_mtlgpufamilysupport") or ""
    return _reading(
        vendor,
        name,
        index,
        cores=value("sppci_cores"),
        metal=metal.removeprefix("spdisplays_"),
        memory=value("spdisplays_vram", "_spdisplays_vram"),
    )


def parse_profiler_text(text: str) -> tuple[Reading, ...] | None:
    """GPUs of the plain text of ``system_profiler SPDisplaysDataType``; None where it is no such text."""
    if "Graphics/Displays:" not in text or "Chipset Model:" not in text:
        return None
    found: list[Reading] = []
    for block in re.split(r"^\s*Chipset Model:", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        values = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in rest.splitlines())}
        vendor = _vendor(f"{values.get('vendor', '')} {name}")
        if vendor is None:
            continue
        metal = values.get("metal support") or values.get("metal family") or ""
        found.append(
            _reading(
                vendor,
                given(name),
                len(found),
                cores=values.get("total number of cores"),
                metal=metal.lower().replace(" ", "") if re.fullmatch(r"Metal \d", metal) else "",
                memory=values.get("vram (total)"),
            )
        )
    return tuple(found)


def _reading(
    vendor: str, name: str | None, index: int, *, cores: str | None, metal: str, memory: str | None
) -> Reading:
    part = True if vendor == "apple" else is_integrated(name) if vendor == "intel" else None
    # Apple writes "4 GB" for 4 GiB of a card.
    total = parse_bytes(re.sub(r"\b([MG])B\b", r"\1iB", memory)) if memory and part is not True else None
    shared = False if part is None and total is not None else part
    facts = GpuFacts(
        vendor=vendor,
        name=name,
        vram_bytes=total,
        integrated=shared,
        unified_memory=shared,
        gpu_cores=whole(cores),
        metal=metal if re.fullmatch(r"metal\d", metal) else None,
    )
    return Reading(facts, "system_profiler SPDisplaysDataType", index)


def _vendor(text: str) -> str | None:
    words = re.findall(r"[a-z]+", text.lower())
    return next((_VENDORS[word] for word in words if word in _VENDORS), None)
