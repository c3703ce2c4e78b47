from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.probe.made import cpu_of
from velollm.probe import lscpu

INTEL = """Architecture: x86_64
CPU(s): {cpus}
On-line CPU(s) list: 0-{last}
Vendor ID: GenuineIntel
Model name: Made CPU
CPU family: 6
Model: {model}
Thread(s) per core: {threads}
Core(s) per socket: {cores}
Socket(s): 1
NUMA node(s): 2
NUMA node0 CPU(s): 0-{last}
NUMA node9 CPU(s):
"""


def intel(cpus: int, cores: int, threads: int, model: int) -> str:
    return INTEL.format(cpus=cpus, last=cpus - 1, cores=cores, threads=threads, model=model)


def test_a_plain_machine() -> None:
    cpu = cpu_of(commands={"lscpu": intel(8, 4, 2, 85)})
    assert (cpu.physical_cores, cpu.performance_cores, cpu.efficiency_cores, cpu.numa_nodes) == (4, 4, 0, 1)


def test_a_chip_that_may_mix_cores_needs_proof() -> None:
    # 6 cores with two threads and 8 with one: lscpu prints 2 threads per core for all of them.
    mixed = cpu_of(commands={"lscpu": intel(20, 14, 2, 0x9A)})
    assert (mixed.physical_cores, mixed.performance_cores, mixed.usable_physical_cores) == (14, None, 14)
    single = cpu_of(commands={"lscpu": intel(8, 8, 1, 0xBD)})
    assert (single.physical_cores, single.performance_cores) == (8, None)
    all_smt = cpu_of(commands={"lscpu": intel(8, 4, 2, 0x97)})
    assert (all_smt.performance_cores, all_smt.efficiency_cores) == (4, 0)


TWO_KINDS = """Architecture: aarch64
CPU(s): 6
On-line CPU(s) list: 0-5
Vendor ID: ARM
Model name: Cortex-A55
Thread(s) per core: 1
Core(s) per socket: 4
Socket(s): 1
CPU max MHz: 1800,0000
Model name: Cortex-A76
Thread(s) per core: 1
Core(s) per socket: 1
Socket(s): 2
CPU max MHz: 2400,0000
"""


def test_blocks_for_kinds_of_core_are_clusters_of_one_chip() -> None:
    cpu = cpu_of(commands={"lscpu": TWO_KINDS})
    assert (cpu.sockets, cpu.physical_cores, cpu.logical_cores) == (1, 6, 6)
    assert (cpu.performance_cores, cpu.efficiency_cores) == (2, 4)
    assert cpu.model_name == ("Cortex-A76", "Cortex-A55")


def test_dashes_are_no_numbers() -> None:
    text = "CPU(s): 4\nOn-line CPU(s) list: 0-3\nModel name: -\nThread(s) per core: 1\nCore(s) per cluster: 4\n"
    cpu = cpu_of(commands={"lscpu": text + "Socket(s): -\nCluster(s): 1\n"})
    assert (cpu.sockets, cpu.physical_cores, cpu.model_name) == (None, 4, None)


def test_offline_cpus() -> None:
    text = (
        "Architecture: aarch64\nCPU(s): 4\nOn-line CPU(s) list: 0,3\nOff-line CPU(s) list: 1,2\n"
        "Model name: Cortex-A57\nThread(s) per core: 1\nCore(s) per socket: 2\nSocket(s): 1\n"
    )
    cpu = cpu_of(commands={"lscpu": text})
    assert (cpu.logical_cores, cpu.physical_cores, cpu.online_physical_cores, cpu.usable_cores) == (4, 4, 2, 2)
    assert cpu.performance_cores is None


def test_json_form() -> None:
    text = (
        '{"lscpu": [{"field": "CPU(s):", "data": "2", "children": [{"field": "On-line CPU(s) list:", "data": "0,1"}]}]}'
    )
    report = lscpu.parse_lscpu(text)
    assert report is not None
    assert lscpu.online_cpus(report) == frozenset({0, 1})


@given(st.text(max_size=400) | st.lists(st.sampled_from(TWO_KINDS.splitlines())).map("\n".join))
def test_no_text_raises(text: str) -> None:
    report = lscpu.parse_lscpu(text)
    if report is None:
        return
    cores = lscpu.online_cores(report)
    assert cores is None or cores > 0
    lscpu.fast_and_slow_cores(report)
    lscpu.model_names(report)
    lscpu.node_count(report)
