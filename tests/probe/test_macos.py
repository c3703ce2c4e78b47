from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import CpuFacts, MemoryFacts
from velollm.probe.host import probe_host
from velollm.probe.macos import parse_hardware, parse_sysctl
from velollm.probe.source import TextSource

SYSCTL = """hw.ncpu: 10
hw.memsize: 34359738368
hw.activecpu: 10
hw.perflevel0.physicalcpu_max: 8
hw.perflevel1.physicalcpu_max: 2
hw.physicalcpu: 10
hw.physicalcpu_max: 10
hw.logicalcpu: 10
hw.cputype: 16777228
hw.cpufamily: -634136515
hw.optional.arm64: 1
hw.optional.neon: 1
hw.optional.arm.FEAT_I8MM: 0
hw.osenvironment:
vm.swapusage: total = 2048.00M  used = 48.00M  free = 2000.00M  (encrypted)
machdep.cpu.brand_string: Apple M1 Pro
"""


def host(commands: dict[str, str]) -> tuple[CpuFacts, MemoryFacts, bool | None]:
    values = probe_host(TextSource(commands=commands)).values
    return values["cpu"], values["memory"], values.get("unified_memory")


def test_apple_silicon() -> None:
    cpu, memory, unified = host({"sysctl -a": SYSCTL})
    assert (cpu.performance_cores, cpu.efficiency_cores, cpu.usable_cores, cpu.usable_physical_cores) == (8, 2, 10, 10)
    assert (cpu.architecture, cpu.model_name, cpu.sockets, cpu.isa) == ("arm64", "Apple M1 Pro", 1, ("neon",))
    assert (memory.total_bytes, memory.swap_free_bytes, unified) == (32 << 30, 2000 << 20, True)


def test_intel_mac_has_one_kind_of_core() -> None:
    text = "hw.ncpu: 12\nhw.physicalcpu_max: 6\nhw.cputype: 16777223\nhw.packages: 1\nhw.memsize: 17179869184\n"
    cpu, _, unified = host({"sysctl hw": text})
    assert (cpu.architecture, cpu.performance_cores, cpu.efficiency_cores, cpu.logical_cores) == ("x86_64", 6, 0, 12)
    assert unified is None


def test_system_profiler() -> None:
    cores = "8 (4 performance and 4 efficiency)"
    plain = f"Hardware:\n\n      Chip: Apple M3\n      Total Number of Cores: {cores}\n      Memory: 16 GB\n"
    entry = {"chip_type": "Apple M3", "number_processors": "proc 8:4:4", "physical_memory": "16 GB"}
    for commands in (
        {"system_profiler SPHardwareDataType": plain},
        {"system_profiler SPHardwareDataType -json": json.dumps({"SPHardwareDataType": [entry]})},
    ):
        cpu, memory, unified = host(commands)
        assert (cpu.model_name, cpu.performance_cores, cpu.efficiency_cores, cpu.usable_cores) == ("Apple M3", 4, 4, 8)
        assert (memory.total_bytes, unified) == (16 << 30, True)


def test_available_pages() -> None:
    pages = "Pages free: 10.\nPages inactive: 20.\nPages speculative: 3.\n"
    text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n" + pages
    assert host({"sysctl hw": SYSCTL, "vm_stat": text})[1].available_bytes == 33 * 16384


def test_a_graphics_report_says_nothing_of_the_processor() -> None:
    values = probe_host(TextSource(commands={"system_profiler SPDisplaysDataType -json": "{}"})).values
    assert values == {"os": "macos"}


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    parse_sysctl(text)
    parse_hardware(text)
    parse_hardware('{"SPHardwareDataType": [' + text + "]}")
    probe_host(TextSource(commands={"sysctl hw": "hw.ncpu: 2\nvm.swapusage: " + text, "vm_stat": text}))
