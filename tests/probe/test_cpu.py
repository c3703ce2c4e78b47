from __future__ import annotations

import pytest

from tests.probe.made import CPU, arm_cpuinfo, cpu_of, each, tree, x86_cpuinfo
from velollm.facts import CpuFacts

SMT4 = [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1)]


def kinds(cpu: CpuFacts) -> tuple[int | None, int | None, str | None, str | None]:
    return cpu.performance_cores, cpu.efficiency_cores, cpu.performance_cpus, cpu.efficiency_cpus


def test_threads_of_a_core_come_from_its_siblings() -> None:
    cpu = cpu_of({"/proc/cpuinfo": x86_cpuinfo(SMT4, 4, 2)} | tree(["0,2", "1,3", "0,2", "1,3"]))
    assert (cpu.physical_cores, cpu.logical_cores, cpu.threads_per_core, cpu.usable_physical_cores) == (2, 4, 2, 2)
    assert kinds(cpu) == (2, 0, "0-3", "")


def test_two_dies_with_the_same_core_ids_are_not_one_core() -> None:
    rows = [(n, 0, n % 2) for n in range(4)]
    assert cpu_of({"/proc/cpuinfo": x86_cpuinfo(rows, 4, 4)}).physical_cores == 4
    smt = [(n, 0, n % 2) for n in range(8)]
    # Four cores with two threads each, but two pairs of ids only: the sum is known, who shares is not.
    known = cpu_of({"/proc/cpuinfo": x86_cpuinfo(smt, 8, 4)})
    assert (known.physical_cores, known.usable_physical_cores) == (4, 4)


def test_a_container_sees_a_part_of_a_socket() -> None:
    rows = [(40 + n, 1, 19 + 7 * n) for n in range(3)]
    cpu = cpu_of({"/proc/cpuinfo": x86_cpuinfo(rows, 256, 128, vendor="AuthenticAMD", family=25, model=160)})
    assert (cpu.physical_cores, cpu.sockets, cpu.usable_cores, cpu.performance_cpus) == (3, 1, 3, "40-42")


def test_sockets_of_one_core_each() -> None:
    rows = [(n, 2 * n, 0) for n in range(4)]
    cpu = cpu_of({"/proc/cpuinfo": x86_cpuinfo(rows, 1, 1)})
    assert (cpu.sockets, cpu.physical_cores, cpu.threads_per_core) == (4, 4, 1)


def test_smt_switched_off_leaves_the_number_of_cores() -> None:
    files = {"/proc/cpuinfo": x86_cpuinfo([(0, 0, 0), (1, 0, 1)], 2, 2), f"{CPU}/smt/control": "off\n"}
    cpu = cpu_of(files | tree(["0", "1"], online="0-1", present="0-3"))
    assert (cpu.physical_cores, cpu.logical_cores, cpu.online_cores, cpu.usable_cores) == (2, 4, 2, 2)


def test_offline_cpus_count_as_present_not_as_usable() -> None:
    cpu = cpu_of({"/proc/cpuinfo": arm_cpuinfo(["0xd08"] * 2)} | tree(["0", "1"], online="0-1", present="0-3"))
    assert (cpu.logical_cores, cpu.online_cores, cpu.physical_cores) == (4, 2, 4)
    assert (cpu.usable_cores, cpu.online_physical_cores) == (2, 2)
    assert cpu.performance_cores is None, "the offline ones may be of another kind"


def test_offline_x86_cpus_may_be_threads_or_cores() -> None:
    cpu = cpu_of({"/proc/cpuinfo": x86_cpuinfo([(0, 0, 0)], 1, 1)} | tree(["0"], online="0", present="0-1"))
    assert (cpu.logical_cores, cpu.physical_cores, cpu.online_physical_cores) == (2, None, 1)


def test_a_tree_for_some_cpus_is_carried_over_only_in_regular_runs() -> None:
    power = "\n".join(f"processor : {n}\ncpu : POWER9, altivec supported\n" for n in range(16))
    regular = {"/proc/cpuinfo": power} | tree(["0-3"] * 4, online="0-3", present="0-3")
    assert cpu_of(regular).physical_cores == 4
    far_apart = {"/proc/cpuinfo": power} | tree(["0,8", "1,9"], online="0-1", present="0-1")
    assert cpu_of(far_apart).physical_cores is None


def test_a_tree_that_contradicts_itself_is_no_processor() -> None:
    from velollm.probe.host import probe_host
    from velollm.probe.source import TextSource

    broken = tree(["0", "1"]) | {f"{CPU}/isolated": "1,9\n"}
    assert "cpu" not in probe_host(TextSource(broken)).values
    assert cpu_of(tree(["0", "1"]) | {f"{CPU}/isolated": "1\n"}).physical_cores == 2


HYBRID = [(0, 0, 0), (1, 0, 0), (2, 0, 4), (3, 0, 5)]


@pytest.mark.parametrize(
    "proof",
    [
        {"/sys/devices/cpu_core/cpus": "0-1\n", "/sys/devices/cpu_atom/cpus": "2-3\n"},
        {f"{CPU}/cpu{n}/cache/index2/level": "2\n" for n in range(4)}
        | {f"{CPU}/cpu{n}/cache/index2/shared_cpu_list": "0-1" if n < 2 else "2-3" for n in range(4)},
        {},
    ],
    ids=["kernel's lists", "shared L2", "threads"],
)
def test_intel_hybrid(proof: dict[str, str]) -> None:
    files = {"/proc/cpuinfo": x86_cpuinfo(HYBRID, 4, 3, model=0x9A)} | tree(["0-1", "0-1", "2", "3"])
    cpu = cpu_of(files | proof)
    assert kinds(cpu) == (1, 2, "0-1", "2-3")
    assert (cpu.physical_cores, cpu.threads_per_core) == (3, 2)


def test_intel_hybrid_without_smt_needs_clocks() -> None:
    rows = [(n, 0, n) for n in range(4)]
    files = {"/proc/cpuinfo": x86_cpuinfo(rows, 4, 4, model=0xBD)} | tree(["0", "1", "2", "3"])
    assert kinds(cpu_of(files)) == (None, None, None, None)
    clocks = each("cpufreq/cpuinfo_max_freq", [4_800_000, 5_000_000, 3_700_000, 3_700_000])
    assert kinds(cpu_of(files | clocks)) == (2, 2, "0-1", "2-3")


def test_favoured_cores_are_not_another_kind() -> None:
    rows = [(n, 0, n) for n in range(4)]
    files = {"/proc/cpuinfo": x86_cpuinfo(rows, 4, 4, vendor="AuthenticAMD", family=25, model=97)}
    clocks = each("cpufreq/cpuinfo_max_freq", [5_750_000, 5_700_000, 5_500_000, 5_250_000])
    assert kinds(cpu_of(files | tree(["0", "1", "2", "3"]) | clocks)) == (4, 0, "0-3", "")


def test_big_and_little_arm_cores_may_be_interleaved() -> None:
    files = {"/proc/cpuinfo": arm_cpuinfo(["0xd87", "0xd85", "0xd87", "0xd85"])}
    cpu = cpu_of(files | tree(["0", "1", "2", "3"], package=36) | each("cpu_capacity", [718, 1017, 731, 1024]))
    assert kinds(cpu) == (2, 2, "1,3", "0,2")
    assert cpu.model_name == ("Cortex-X925", "Cortex-A725")
    assert cpu.sockets == 1


def test_arm_kinds_by_name_where_no_clock_is_known() -> None:
    cpu = cpu_of({"/proc/cpuinfo": arm_cpuinfo(["0xd05", "0xd0b", "0xd44"])})
    assert kinds(cpu) == (2, 1, "1-2", "0")
    unnamed = cpu_of({"/proc/cpuinfo": arm_cpuinfo(["0xd05", "0xabc"])})
    assert (unnamed.model_name, unnamed.performance_cores) == (None, None)


def test_one_arm_part_is_one_kind_whatever_its_clocks() -> None:
    files = {"/proc/cpuinfo": arm_cpuinfo(["0x001", "0x001"], "0x51")} | tree(["0", "1"])
    cpu = cpu_of(files | each("cpufreq/cpuinfo_max_freq", [3_400_000, 4_200_000]))
    assert kinds(cpu) == (2, 0, "0-1", "")
    assert (cpu.model_name, cpu.architecture, cpu.isa) == ("Oryon", "aarch64", ("neon", "dotprod"))


def test_arm_cores_with_several_threads_are_not_counted_as_cores() -> None:
    cpu = cpu_of({"/proc/cpuinfo": arm_cpuinfo(["0x0af"] * 4, "0x43")})
    assert (cpu.logical_cores, cpu.physical_cores) == (4, None)


def test_numa_nodes_need_cpus_and_may_come_as_masks() -> None:
    rows = [(n, 0, n) for n in range(64)]
    base = {"/proc/cpuinfo": x86_cpuinfo(rows, 64, 64)}
    node = "/sys/devices/system/node"
    masks = {
        f"{node}/node0/cpumap": "00000000,ffffffff\n",
        f"{node}/node8/cpumap": "ffffffff,00000000\n",
        f"{node}/node9/cpumap": "00000000,00000000\n",
    }
    assert cpu_of(base | masks).numa_nodes == 2
    assert cpu_of(base | {f"{node}/has_cpu": "0,8\n"}).numa_nodes == 2
    assert cpu_of(base).numa_nodes is None


@pytest.mark.parametrize(
    ("files", "usable", "physical"),
    [
        ({}, 4, 2),
        ({"/proc/self/status": "Name:\tx\nCpus_allowed_list:\t0,2\n"}, 2, 1),
        ({"/proc/self/status": "Cpus_allowed_list:\t0-127\n"}, 4, 2),
        ({"/sys/fs/cgroup/cpuset.cpus.effective": "0-2\n", "/sys/fs/cgroup/cgroup.controllers": "cpuset\n"}, 3, 2),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1, 1),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1, 1),
        ({"/sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3, 2),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 4, 2),
        ({"/sys/fs/cgroup/cpu.max": "garbage\n"}, 4, 2),
    ],
)
def test_what_may_be_used(files: dict[str, str], usable: int, physical: int) -> None:
    base = {"/proc/cpuinfo": x86_cpuinfo(SMT4, 4, 2)} | tree(["0,2", "1,3", "0,2", "1,3"])
    cpu = cpu_of(base | files)
    assert (cpu.usable_cores, cpu.usable_physical_cores) == (usable, physical)


def test_nproc_alone_counts_threads_and_the_quota_still_cuts() -> None:
    cpu = cpu_of({"/sys/fs/cgroup/cpu.max": "100000 100000\n"}, {"nproc": "120\n"})
    assert (cpu.logical_cores, cpu.usable_cores, cpu.physical_cores) == (120, 1, None)


def test_governor_and_board() -> None:
    files = {"/proc/cpuinfo": arm_cpuinfo(["0xd0b"]) + "\nHardware\t: BCM2835\nModel\t\t: Some Board 5\n"} | tree(["0"])
    cpu = cpu_of(files | {f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n"})
    assert (cpu.governor, cpu.board, cpu.model_name) == ("ondemand", "Some Board 5", "Cortex-A76")


def test_apple_parts_name_their_chip() -> None:
    cpu = cpu_of({"/proc/cpuinfo": arm_cpuinfo(["0x024", "0x024", "0x025", "0x025"], "0x61")})
    assert (cpu.model_name, *kinds(cpu)) == ("Apple M1 Pro", 2, 2, "2-3", "0-1")
