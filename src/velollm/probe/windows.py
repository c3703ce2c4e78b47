"""Processor and memory of a Windows machine, of its CIM classes, and what psutil knows where it runs."""

from __future__ import annotations

import platform

from velollm.probe.fields import Fields
from velollm.probe.source import Source
from velollm.probe.texts import parse_blocks, parse_int
from velollm.units import KIB

# `Architecture` of Win32_Processor (Microsoft Learn, Win32_Processor class).
_ARCHITECTURES = {0: "i686", 9: "x86_64", 12: "aarch64"}


def read_cim(source: Source, cpu: Fields, memory: Fields) -> None:
    """Put what `Get-CimInstance` (or `Get-WmiObject`) printed of processor, computer and operating system.

    CIM does not tell performance from efficiency cores, so these stay unknown.
    """
    processors = _instances(source, "Win32_Processor")
    _put_processors(processors, cpu)
    if processors:
        cpu.put("architecture", _architecture(processors[0], _instances(source, "Win32_OperatingSystem")), "CIM")
    for block in _instances(source, "Win32_ComputerSystem"):
        memory.put("total_bytes", parse_int(block.get("TotalPhysicalMemory")), "Win32_ComputerSystem")
        if processors:
            board = " ".join(filter(None, (block.get("Manufacturer"), block.get("Model"))))
            cpu.put("board", board or None, "Win32_ComputerSystem")
    for block in _instances(source, "Win32_OperatingSystem"):
        for name, key in (("total_bytes", "TotalVisibleMemorySize"), ("available_bytes", "FreePhysicalMemory")):
            count = parse_int(block.get(key))
            memory.put(name, count * KIB if count is not None else None, "Win32_OperatingSystem")


def _instances(source: Source, name: str) -> list[dict[str, str]]:
    if source.live:
        return []
    text = source.run(["Get-CimInstance", name]) or source.run(["Get-WmiObject", name])
    return parse_blocks(text or "")


def _put_processors(processors: list[dict[str, str]], cpu: Fields) -> None:
    named = [block for block in processors if block.get("Name")]
    if not named:
        return
    place = "Win32_Processor"
    names = tuple(dict.fromkeys(block["Name"] for block in named))
    cpu.put("model_name", names[0] if len(names) == 1 else names, place)
    cpu.put("sockets", len(named), place)
    for name, key in (("physical_cores", "NumberOfCores"), ("logical_cores", "NumberOfLogicalProcessors")):
        counts = [parse_int(block.get(key)) for block in named]
        if all(count is not None and count > 0 for count in counts):
            cpu.put(name, sum(count or 0 for count in counts), place)


def _architecture(processor: dict[str, str], systems: list[dict[str, str]]) -> str | None:
    code = parse_int(processor.get("Architecture"))
    if code is not None:
        return _ARCHITECTURES.get(code)
    texts = [block.get("OSArchitecture", "") for block in systems]
    if any(text.startswith("ARM") for text in texts):
        return "aarch64"
    # "64-bit" alone stands for x86-64: Windows on Arm writes "ARM 64-bit Processor".
    return "x86_64" if any(text.startswith("64") for text in texts) else None


def read_psutil(cpu: Fields, memory: Fields) -> None:
    """Put what psutil knows of the machine this process runs on, where no file or tool told it."""
    import psutil

    cpu.put("logical_cores", psutil.cpu_count(logical=True), "psutil")
    cpu.put("physical_cores", psutil.cpu_count(logical=False), "psutil")
    cpu.put("architecture", {"AMD64": "x86_64"}.get(platform.machine(), platform.machine()) or None, "platform")
    cpu.put("model_name", platform.processor() or None, "platform")
    virtual, swap = psutil.virtual_memory(), psutil.swap_memory()
    memory.put("total_bytes", virtual.total, "psutil")
    memory.put("available_bytes", virtual.available, "psutil")
    memory.put("swap_total_bytes", swap.total, "psutil")
    memory.put("swap_free_bytes", swap.free, "psutil")


def read_psutil_power(power: Fields) -> None:
    """Battery or mains of the machine this process runs on."""
    import psutil

    try:
        battery = psutil.sensors_battery()
    except (OSError, RuntimeError):
        return
    if battery is not None:
        power.put("on_battery", not battery.power_plugged if battery.power_plugged is not None else None, "psutil")
        power.put("battery_percent", float(battery.percent), "psutil")
