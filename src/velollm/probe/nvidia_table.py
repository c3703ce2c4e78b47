"""The table that plain ``nvidia-smi`` draws, and ``nvidia-smi --version``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from velollm.facts import GpuFacts, GpuProcess, MigDevice
from velollm.probe.nvidia_xml import NvidiaText
from velollm.probe.reading import Reading, given, short_pci
from velollm.units import MIB

_LINE_LIMIT = 20_000
_DRIVER = re.compile(r"(?:KMD Version|Driver Version|DRIVER version)\s*:\s*(\d[\w.]*)", re.IGNORECASE)
_KMD = re.compile(r"KMD Version\s*:\s*(\d[\w.]*)", re.IGNORECASE)
_CUDA = re.compile(r"CUDA(?: UMD)? Version\s*:\s*(\d[\w.]*)", re.IGNORECASE)
_GPU = re.compile(r"^\|\s{1,4}(\d{1,3})\s{2,}(\S.*?)\s+(On|Off|N/A|WDDM|TCC|MCDM)\s*\|\s*(\S+)\s+(On|Off|N/A)\s*\|")
_MEMORY = re.compile(r"\|\s*(\d{1,9})MiB\s*/\s*(\d{1,9})MiB\s*\|")
_CAP = re.compile(r"W\s*/\s*(\d{1,6})W\s*\|")
_MIG_ROW = re.compile(r"^\|\s*(\d{1,3})\s+\d+\s+\d+\s+\d+\s+\|\s*\d+MiB\s*/\s*(\d{1,9})MiB\s*\|")
_PROCESS = re.compile(
    r"^\|\s+(\d{1,3})\s+(?:(?:N/A|\d+)\s+(?:N/A|\d+)\s+)?(\d{1,9})\s+(?:[CGM+]+)\s+(.*?)\s+(N/A|\d{1,9}MiB)\s*\|"
)
_MIG_STATE = re.compile(r"\|\s*(Enabled|Disabled|N/A)\s*\|\s*$")
_DRIVER_MODELS = {"WDDM", "TCC", "MCDM"}


@dataclass
class _Row:
    index: int
    name: str | None
    driver_model: str | None
    pci: str | None
    display: bool | None
    total: int | None = None
    used: int | None = None
    unified: bool | None = None
    watts: float | None = None
    mig: bool | None = None
    migs: list[MigDevice] = field(default_factory=list)
    processes: list[GpuProcess] = field(default_factory=list)


def parse_versions(text: str) -> tuple[str | None, str | None]:
    """(driver, CUDA) of the banner or of ``nvidia-smi --version``; "Deprecated, see …" is no version."""
    driver = _KMD.search(text) or _DRIVER.search(text)
    cuda = _CUDA.search(text)
    return driver.group(1) if driver else None, cuda.group(1) if cuda else None


def parse_nvidia_table(text: str) -> NvidiaText | None:
    """GPUs of the table; None where the text is none.

    A name that ends in dots was cut by the tool and is not a name.
    """
    if "NVIDIA-SMI" not in text or "Bus-Id" not in text:
        return None
    rows: dict[int, _Row] = {}
    last: _Row | None = None
    processes_shown = False
    for line in text.splitlines()[:_LINE_LIMIT]:
        if match := _GPU.match(line):
            last = _new_row(match)
            rows[last.index] = last
        elif match := _MIG_ROW.match(line):
            owner = rows.get(int(match.group(1)))
            if owner is not None:
                owner.migs.append(MigDevice(vram_bytes=int(match.group(2)) * MIB))
        elif match := _PROCESS.match(line):
            _add_process(rows, match)
        elif "Processes:" in line or "MIG devices:" in line:
            processes_shown, last = processes_shown or "Processes:" in line, None
        elif last is not None:
            _second_lines(last, line)
    return NvidiaText(tuple(_reading(row, parse_versions(text), processes_shown) for row in rows.values()))


def _new_row(match: re.Match[str]) -> _Row:
    index, name, model, pci, display = match.groups()
    return _Row(
        index=int(index),
        name=None if name.endswith("...") else name,
        driver_model=model if model in _DRIVER_MODELS else None,
        pci=short_pci(pci),
        display={"On": True, "Off": False}.get(display),
    )


def _second_lines(row: _Row, line: str) -> None:
    if match := _MEMORY.search(line):
        row.used, row.total = int(match.group(1)) * MIB, int(match.group(2)) * MIB
    elif "Not Supported" in line:
        row.unified = True
    elif match := _MIG_STATE.search(line):
        row.mig = {"Enabled": True, "Disabled": False}.get(match.group(1))
    if match := _CAP.search(line):
        row.watts = float(match.group(1))


def _add_process(rows: dict[int, _Row], match: re.Match[str]) -> None:
    index, pid, name, used = match.groups()
    owner = rows.get(int(index))
    if owner is not None:
        memory = int(used[:-3]) * MIB if used.endswith("MiB") else None
        owner.processes.append(GpuProcess(pid=int(pid), name=given(name), vram_bytes=memory))


def _reading(row: _Row, versions: tuple[str | None, str | None], processes_shown: bool) -> Reading:
    facts = GpuFacts(
        vendor="nvidia",
        name=row.name,
        vram_bytes=row.total,
        vram_used_bytes=row.used,
        unified_memory=row.unified,
        driver_version=versions[0],
        cuda_version=versions[1],
        driver_model=row.driver_model,
        mig=row.mig,
        mig_devices=tuple(row.migs) if row.mig and row.migs else None,
        pci=row.pci,
        display_active=row.display,
        power_limit_watts=row.watts,
        processes=tuple(row.processes) if processes_shown else None,
    )
    return Reading(facts, "nvidia-smi", row.index)
