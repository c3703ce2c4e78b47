"""Names of Arm cores, and which of them are the slow ones of a mixed chip.

`/proc/cpuinfo` of an Arm kernel has no model name, only an implementer and a part number. The names
are those of util-linux (sys-utils/lscpu-arm.c) and Linux (arch/arm64/include/asm/cputype.h).
"""

from __future__ import annotations

import re

_PARTS: dict[int, dict[int, str]] = {
    0x41: {
        0xC05: "Cortex-A5",
        0xC07: "Cortex-A7",
        0xC08: "Cortex-A8",
        0xC09: "Cortex-A9",
        0xC0D: "Cortex-A17",
        0xC0E: "Cortex-A17",
        0xC0F: "Cortex-A15",
        0xD01: "Cortex-A32",
        0xD02: "Cortex-A34",
        0xD03: "Cortex-A53",
        0xD04: "Cortex-A35",
        0xD05: "Cortex-A55",
        0xD06: "Cortex-A65",
        0xD07: "Cortex-A57",
        0xD08: "Cortex-A72",
        0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75",
        0xD0B: "Cortex-A76",
        0xD0C: "Neoverse-N1",
        0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE",
        0xD40: "Neoverse-V1",
        0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE",
        0xD43: "Cortex-A65AE",
        0xD44: "Cortex-X1",
        0xD46: "Cortex-A510",
        0xD47: "Cortex-A710",
        0xD48: "Cortex-X2",
        0xD49: "Neoverse-N2",
        0xD4A: "Neoverse-E1",
        0xD4B: "Cortex-A78C",
        0xD4C: "Cortex-X1C",
        0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2",
        0xD80: "Cortex-A520",
        0xD81: "Cortex-A720",
        0xD82: "Cortex-X4",
        0xD83: "Neoverse-V3AE",
        0xD84: "Neoverse-V3",
        0xD85: "Cortex-X925",
        0xD87: "Cortex-A725",
        0xD88: "Cortex-A520AE",
        0xD89: "Cortex-A720AE",
        0xD8A: "C1-Nano",
        0xD8B: "C1-Pro",
        0xD8C: "C1-Ultra",
        0xD8E: "Neoverse-N3",
        0xD8F: "Cortex-A320",
        0xD90: "C1-Premium",
    },
    0x42: {0x516: "ThunderX2"},
    0x43: {0x0A1: "ThunderX-88XX", 0x0AF: "ThunderX2-99xx", 0x0B8: "ThunderX3"},
    0x46: {0x001: "A64FX", 0x003: "MONAKA"},
    0x48: {0xD01: "TaiShan-v110", 0xD02: "TaiShan-v120"},
    0x4E: {0x003: "Denver-2", 0x004: "Carmel", 0x010: "Olympus"},
    0x51: {
        0x001: "Oryon",
        0x800: "Kryo-2XX-Gold",
        0x801: "Kryo-2XX-Silver",
        0x802: "Kryo-3XX-Gold",
        0x803: "Kryo-3XX-Silver",
        0x804: "Kryo-4XX-Gold",
        0x805: "Kryo-4XX-Silver",
        0xC00: "Falkor",
        0xC01: "Saphira",
    },
    0x61: {
        0x022: "Icestorm-M1",
        0x023: "Firestorm-M1",
        0x024: "Icestorm-M1-Pro",
        0x025: "Firestorm-M1-Pro",
        0x028: "Icestorm-M1-Max",
        0x029: "Firestorm-M1-Max",
        0x032: "Blizzard-M2",
        0x033: "Avalanche-M2",
        0x034: "Blizzard-M2-Pro",
        0x035: "Avalanche-M2-Pro",
        0x038: "Blizzard-M2-Max",
        0x039: "Avalanche-M2-Max",
    },
    0x6D: {0xD49: "Azure-Cobalt-100"},
    0x70: {0x660: "FTC660", 0x661: "FTC661", 0x662: "FTC662", 0x663: "FTC663", 0x664: "FTC664", 0x862: "FTC862"},
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1a", 0xAC5: "Ampere-1b"},
}

# Cores with several threads each; every other Arm core runs one (vendors' technical manuals).
_SMT_CORES = {"ThunderX2", "ThunderX2-99xx", "ThunderX3", "Neoverse-E1", "Cortex-A65", "Cortex-A65AE"}

# Speed class inside one chip: little cores 1, big cores 2, the biggest 3.
_CLASSES = (
    (1, re.compile(r"Cortex-A(?:5|7|3\d|5[35]|3[0-9]{2}|5[0-9]{2}(?:AE)?)$|Icestorm|Blizzard|Silver$|C1-Nano")),
    (3, re.compile(r"Cortex-X|C1-(?:Ultra|Premium)")),
    (2, re.compile(r"Cortex-A|Firestorm|Avalanche|Gold$|C1-Pro")),
)

# Device-tree names of Apple chips (Linux: arch/arm64/boot/dts/apple, Asahi Linux wiki "SoC codenames").
_APPLE_CHIPS = {
    "t8103": "Apple M1",
    "t6000": "Apple M1 Pro",
    "t6001": "Apple M1 Max",
    "t6002": "Apple M1 Ultra",
    "t8112": "Apple M2",
    "t6020": "Apple M2 Pro",
    "t6021": "Apple M2 Max",
    "t6022": "Apple M2 Ultra",
    "t8122": "Apple M3",
    "t6030": "Apple M3 Pro",
    "t6031": "Apple M3 Max",
    "t6034": "Apple M3 Max",
    "t8132": "Apple M4",
    "t6040": "Apple M4 Pro",
    "t6041": "Apple M4 Max",
}


def core_name(implementer: int | None, part: int | None) -> str | None:
    """Name of a core by its implementer and part number; None where it is not known."""
    if implementer is None or part is None:
        return None
    return _PARTS.get(implementer, {}).get(part)


def has_one_thread(name: str | None) -> bool:
    """True where the core of that name is known to run one hardware thread."""
    return name is not None and name not in _SMT_CORES


def speed_class(name: str | None) -> int | None:
    """1 for a little core, 2 for a big one, 3 for the biggest; None where the name says nothing."""
    if name is None:
        return None
    return next((rank for rank, pattern in _CLASSES if pattern.match(name)), None)


def apple_chip_of_core(name: str | None) -> str | None:
    """The Apple chip that has cores of that name; None for those that Max and Ultra share."""
    match = re.fullmatch(r"(?:Icestorm|Firestorm|Blizzard|Avalanche)-(M\d(?:-Pro)?)", name or "")
    return f"Apple {match.group(1).replace('-', ' ')}" if match is not None else None


def apple_chip(compatible: str | None) -> str | None:
    """Name of the Apple chip in a device tree's ``compatible`` list (``apple,t6000``), else None."""
    for name in re.findall(r"apple,(t\d{4})\b", compatible or ""):
        if name in _APPLE_CHIPS:
            return _APPLE_CHIPS[name]
    return None
