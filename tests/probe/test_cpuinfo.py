from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.probe.made import CPU, arm_cpuinfo, tree, x86_cpuinfo
from velollm.probe.arm import apple_chip, core_name, speed_class
from velollm.probe.cpuinfo import core_keys, info_architecture, info_core_count, parse_cpuinfo, parse_isa
from velollm.probe.host import probe_host
from velollm.probe.hybrid import parse_topology_table
from velollm.probe.source import TextSource
from velollm.probe.texts import parse_blocks, parse_cpu_mask, parse_float, parse_int

HINTS = [
    "processor : 0", "processor : 999999", "physical id : 0", "core id : 3", "siblings : 4", "cpu cores : 0",
    "vendor_id : GenuineIntel", "cpu family : 6", "model : 154", "flags : fpu lm", "CPU implementer : 0x41",
    "CPU part : 0xd05", "Features : asimd", "cpu : POWER9", "isa : rv64imac", "",
]  # fmt: skip


def test_instruction_sets() -> None:
    assert parse_isa("fpu avx avx2 avx512f avx512_vnni amx_tile") == ("avx", "avx2", "avx512", "vnni", "amx")
    assert parse_isa("fp asimd asimddp sve i8mm") == ("neon", "dotprod", "i8mm", "sve")
    assert parse_isa("fpu") == ()
    assert parse_isa(None) is None


def test_architectures() -> None:
    assert info_architecture(parse_cpuinfo(x86_cpuinfo([(0, 0, 0)], 1, 1, flags="fpu"))) == "i686"
    assert info_architecture(parse_cpuinfo("processor : 0\ncpu : POWER10 (raw), altivec supported\n")) == "ppc64le"
    assert info_architecture(parse_cpuinfo("processor : 0\nhart : 0\nisa : rv64imafdc\n")) == "riscv64"
    assert info_architecture(parse_cpuinfo("processor : 0\nCPU implementer : 0x41\nFeatures : neon vfpv4\n")) is None


def test_arm_names() -> None:
    assert core_name(0x41, 0xD4F) == "Neoverse-V2"
    assert core_name(0x41, 0x999) is None
    assert (speed_class("Cortex-X925"), speed_class("Cortex-A725"), speed_class("Cortex-A520")) == (3, 2, 1)
    assert speed_class("Neoverse-V2") is None
    assert apple_chip("apple,j316c\x00apple,t6001\x00") == "Apple M1 Max"
    assert apple_chip("apple,t9999") is None


def test_masks_and_numbers() -> None:
    assert parse_cpu_mask("00000003,f0000000,0003f000") == frozenset({*range(12, 18), *range(60, 66)})
    assert parse_cpu_mask("f") == frozenset({0, 1, 2, 3})
    assert parse_cpu_mask("x") is None
    assert parse_cpu_mask("f," * 40000 + "f") is None
    assert parse_float("1479,0000") == 1479.0
    assert parse_int("9" * 30) is None


def test_table_of_clusters() -> None:
    head = " CPU    cluster  policy   speed  speed   core type\n"
    text = head + "  0        0        0      600    2064       -\n 10        1        2      600    3036   X / r1\n"
    assert parse_topology_table(text) == {0: 2064.0, 10: 3036.0}


@given(st.lists(st.sampled_from(HINTS), max_size=40).map("\n".join) | st.text(max_size=300))
def test_no_cpuinfo_raises(text: str) -> None:
    info = parse_cpuinfo(text)
    keys, count = core_keys(info), info_core_count(info)
    assert keys is None or keys.keys() == info.processors.keys()
    assert count is None or count > 0
    info_architecture(info)
    cpu = probe_host(TextSource({"/proc/cpuinfo": text})).values.get("cpu")
    if cpu is not None:
        assert cpu.usable_cores is None or 1 <= cpu.usable_cores <= cpu.logical_cores
        assert cpu.usable_physical_cores is None or cpu.usable_physical_cores <= cpu.usable_cores


@given(st.text(max_size=200))
def test_no_small_text_raises(text: str) -> None:
    parse_blocks(text)
    parse_cpu_mask(text)
    parse_float(text)
    parse_int(text)
    parse_topology_table(text)
    apple_chip(text)


TREE = tree(["0-1", "0-1", "2"]) | {f"{CPU}/cpu0/cache/index2/level": "2", f"{CPU}/smt/control": "on"}


@given(st.dictionaries(st.sampled_from(sorted(TREE)), st.text("0123456789,-\n x", max_size=12)))
def test_no_damaged_tree_raises(damaged: dict[str, str]) -> None:
    for cpuinfo in (x86_cpuinfo([(0, 0, 0), (1, 0, 0), (2, 0, 1)], 3, 2, model=0x9A), arm_cpuinfo(["0xd05"] * 3)):
        cpu = probe_host(TextSource(TREE | damaged | {"/proc/cpuinfo": cpuinfo})).values["cpu"]
        assert 1 <= cpu.usable_cores <= cpu.logical_cores
        assert (cpu.performance_cores or 0) + (cpu.efficiency_cores or 0) <= cpu.logical_cores
