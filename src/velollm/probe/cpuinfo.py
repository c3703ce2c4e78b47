"""`/proc/cpuinfo` of x86, Arm, POWER and RISC-V kernels."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from velollm.probe import arm
from velollm.probe.texts import parse_int

_PROCESSOR_LIMIT = 65536

# Name here -> flags that mean it (x86 `flags`, Arm `Features`, lscpu `Flags`).
_ISA: tuple[tuple[str, frozenset[str]], ...] = (
    ("avx", frozenset({"avx"})),
    ("avx2", frozenset({"avx2"})),
    ("fma", frozenset({"fma"})),
    ("f16c", frozenset({"f16c"})),
    ("avx512", frozenset({"avx512f"})),
    ("vnni", frozenset({"avx_vnni", "avx512_vnni"})),
    ("bf16", frozenset({"avx512_bf16", "amx_bf16", "bf16"})),
    ("amx", frozenset({"amx_tile"})),
    ("neon", frozenset({"asimd", "neon"})),
    ("dotprod", frozenset({"asimddp"})),
    ("i8mm", frozenset({"i8mm"})),
    ("sve", frozenset({"sve"})),
    ("sve2", frozenset({"sve2"})),
    ("sme", frozenset({"sme"})),
    ("altivec", frozenset({"altivec"})),
)

# Chips that mix kinds of cores, by family and model number. Intel: arch/x86/include/asm/intel-family.h
# (Lakefield, Alder, Raptor, Meteor, Arrow, Lunar, Panther Lake). AMD: Phoenix 2, Strix and Krackan
# Point (Zen with "c" cores). For these, sameness of the cores needs proof.
_MIXED_INTEL = {0x8A, 0x97, 0x9A, 0xB7, 0xBA, 0xBF, 0xAA, 0xAC, 0xB5, 0xC5, 0xC6, 0xBD, 0xCC}
_MIXED_AMD = {(25, 0x78), *((26, m) for m in range(0x20, 0x30)), *((26, m) for m in range(0x60, 0x70))}


@dataclass(frozen=True)
class CpuInfo:
    """Processors by number, each with its lines (names in lower case), and the lines about the machine."""

    processors: Mapping[int, Mapping[str, str]]
    machine: Mapping[str, str]

    def values(self, name: str) -> tuple[str, ...]:
        """Different values of one line over all processors, in the order of first appearance."""
        found = (fields.get(name) for fields in self.processors.values())
        return tuple(dict.fromkeys(value for value in found if value))

    def first(self, name: str) -> str | None:
        """Value of one line at the first processor that has it."""
        return next(iter(self.values(name)), None)


def parse_cpuinfo(text: str) -> CpuInfo:
    """Lines of `/proc/cpuinfo`; never raises, and stops after 65,536 processors."""
    processors: dict[int, dict[str, str]] = {}
    machine: dict[str, str] = {}
    current = machine
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        if not colon or not key:
            current = current if line.strip() else machine
            continue
        number = parse_int(value) if key == "processor" else None
        if number is not None and number >= 0:
            if len(processors) >= _PROCESSOR_LIMIT:
                break
            current = processors.setdefault(number, {})
        current[key] = value.strip()
    return CpuInfo(processors, machine)


def parse_isa(flags: str | None) -> tuple[str, ...] | None:
    """Vector extensions that matter for inference, of a line of flags; None where there is no such line."""
    if not flags:
        return None
    have = set(flags.lower().split())
    return tuple(name for name, any_of in _ISA if have & any_of)


def info_flags(info: CpuInfo) -> str | None:
    """The flags of the first processor that lists them."""
    return info.first("flags") or info.first("features")


def info_architecture(info: CpuInfo) -> str | None:
    """Machine name as `uname -m` would print it, from the lines that only one architecture has."""
    flags = (info.first("flags") or "").split()
    if info.first("vendor_id") and "fpu" in flags:
        return "x86_64" if "lm" in flags else "i686"
    if info.first("cpu implementer"):
        return "aarch64" if "asimd" in (info.first("features") or "").split() else None
    if (info.first("cpu") or "").startswith("POWER"):
        # The file says nothing of byte order; Linux on POWER8 and later is little-endian in all
        # distributions still made for it.
        generation = re.match(r"POWER(\d+)", info.first("cpu") or "")
        return "ppc64le" if generation and int(generation.group(1)[:3]) >= 8 else None
    match = re.match(r"(rv\d+)", info.first("isa") or "")
    return {"rv64": "riscv64", "rv32": "riscv32"}.get(match.group(1)[:4]) if match else None


def core_names(info: CpuInfo) -> dict[int, str | None]:
    """Name of the Arm core of each processor (None where its numbers are unknown); empty on other machines."""
    if not info.first("cpu implementer"):
        return {}
    names = {}
    for number, fields in info.processors.items():
        implementer, part = (_parse_hex(fields.get(key)) for key in ("cpu implementer", "cpu part"))
        names[number] = arm.core_name(implementer, part)
    return names


def part_numbers(info: CpuInfo) -> dict[int, tuple[str, str]]:
    """Implementer and part of each processor that has both (equal parts are the same kind of core)."""
    return {
        number: (fields["cpu implementer"], fields["cpu part"])
        for number, fields in info.processors.items()
        if "cpu implementer" in fields and "cpu part" in fields
    }


def may_mix_cores(info: CpuInfo) -> bool:
    """True for an x86 chip of a line that mixes kinds of cores."""
    return is_mixed_model(info.first("vendor_id"), info.first("cpu family"), info.first("model"))


def is_mixed_model(vendor: str | None, family: str | None, model: str | None) -> bool:
    """True where vendor, family and model number (decimal texts) name a line that mixes kinds of cores."""
    numbers = (parse_int(family), parse_int(model))
    if vendor == "GenuineIntel":
        return numbers[0] == 6 and numbers[1] in _MIXED_INTEL
    return vendor == "AuthenticAMD" and numbers in _MIXED_AMD


def core_keys(info: CpuInfo) -> dict[int, Hashable] | None:
    """A key for each processor, equal for the threads of one core; None where the file cannot tell.

    A socket's ``core id`` is not unique where it holds two dies, so the pairs are checked against the
    socket's own ``siblings`` and ``cpu cores`` lines; these describe the whole socket even where a
    container shows a part of it.
    """
    names = core_names(info)
    if names:
        return {n: n for n in info.processors} if all(map(arm.has_one_thread, names.values())) else None
    if len(info.processors) == 1:
        return {n: n for n in info.processors}
    sockets: dict[str, list[int]] = {}
    for number, fields in info.processors.items():
        if "physical id" not in fields or "core id" not in fields:
            return None
        sockets.setdefault(fields["physical id"], []).append(number)
    keys: dict[int, Hashable] = {}
    for socket, numbers in sockets.items():
        part = _socket_keys(info, socket, numbers)
        if part is None:
            return None
        keys.update(part)
    return keys


def _socket_keys(info: CpuInfo, socket: str, numbers: list[int]) -> dict[int, Hashable] | None:
    fields = info.processors[numbers[0]]
    siblings, cores = parse_int(fields.get("siblings")), parse_int(fields.get("cpu cores"))
    if siblings is not None and siblings == cores:
        return {n: n for n in numbers}
    pairs: dict[int, Hashable] = {n: (socket, info.processors[n]["core id"]) for n in numbers}
    whole = siblings == len(numbers)
    if whole and cores is not None and cores != len(set(pairs.values())):
        return None
    return pairs


def info_core_count(info: CpuInfo) -> int | None:
    """Physical cores of the processors listed; also where threads cannot be told apart but the sums agree."""
    keys = core_keys(info)
    if keys is not None:
        return len(set(keys.values())) or None
    sockets: dict[str, list[int]] = {}
    for number, fields in info.processors.items():
        sockets.setdefault(fields.get("physical id", ""), []).append(number)
    total = 0
    for numbers in sockets.values():
        fields = info.processors[numbers[0]]
        cores = parse_int(fields.get("cpu cores"))
        if cores is None or parse_int(fields.get("siblings")) != len(numbers):
            return None
        total += cores
    return total or None


def _parse_hex(text: str | None) -> int | None:
    try:
        return int(text, 16) if text is not None and len(text) <= 10 else None
    except ValueError:
        return None
