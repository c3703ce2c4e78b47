from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import MemoryFacts
from velollm.probe.host import probe_host
from velollm.probe.memory import parse_meminfo
from velollm.probe.source import TextSource

KIB = 1024
NODE = "/sys/devices/system/node"
MEMINFO = "MemTotal: 3000 kB\nMemFree: 2000 kB\nMemAvailable: 2500 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n"


def memory_of(files: dict[str, str], commands: dict[str, str] | None = None) -> MemoryFacts:
    memory = probe_host(TextSource(files, commands)).values["memory"]
    assert isinstance(memory, MemoryFacts)
    return memory


def node(number: int, total: int, free: int) -> dict[str, str]:
    text = f"Node {number} MemTotal: {total} kB\nNode {number} MemFree: {free} kB\n"
    return {f"{NODE}/node{number}/meminfo": text}


def test_plain_machine() -> None:
    memory = memory_of({"/proc/meminfo": MEMINFO})
    assert (memory.total_bytes, memory.available_bytes) == (3000 * KIB, 2500 * KIB)
    assert (memory.swap_total_bytes, memory.swap_free_bytes, memory.limit_bytes) == (100 * KIB, 60 * KIB, None)


def test_old_kernels_have_no_available_line() -> None:
    assert memory_of({"/proc/meminfo": "MemTotal: 10 kB\nMemFree: 5 kB\n"}).available_bytes is None


def test_memory_of_gpus_on_nodes_without_cpus_is_not_host_memory() -> None:
    files = {"/proc/meminfo": MEMINFO, f"{NODE}/has_cpu": "0,8\n"}
    memory = memory_of(files | node(0, 1200, 900) | node(8, 1000, 600) | node(255, 800, 500))
    assert (memory.total_bytes, memory.proc_meminfo_total_bytes) == (2200 * KIB, 3000 * KIB)
    assert memory.available_bytes == 2000 * KIB


def test_memory_of_the_allowed_nodes() -> None:
    files = {"/proc/meminfo": MEMINFO, f"{NODE}/has_cpu": "0,8\n", "/proc/self/cgroup": "0::/\n"}
    nodes = node(0, 1800, 900) | node(8, 1200, 600)
    one = memory_of(files | nodes | {"/sys/fs/cgroup/cpuset.mems.effective": "8\n"})
    assert one.allowed_bytes == 1200 * KIB
    both = memory_of(files | nodes | {"/sys/fs/cgroup/cpuset.mems.effective": "0,8\n"})
    assert (both.allowed_bytes, both.total_bytes) == (None, 3000 * KIB)


def test_a_limit_is_not_the_total() -> None:
    memory = memory_of({"/sys/fs/cgroup/memory.max": "536870912\n", "/sys/fs/cgroup/memory.current": "100\n"})
    assert (memory.total_bytes, memory.limit_bytes, memory.limit_used_bytes) == (None, 536870912, 100)


HEADER = "               total        used        free      shared  buff/cache   available\n"


@pytest.mark.parametrize(
    ("options", "row", "total", "approximate"),
    [
        (" -h", "Mem:           7.5Gi       192Mi       3.7Gi       4.5Mi        71Mi       3.8Gi\n", None, 7.5),
        (" -h", "Mem:            15G       192M       3.7G       4.5M        71M       3.8G\n", None, 15.0),
        (" -m", "Mem:          7680         192        3000         4        71       3800\n", None, 7.5),
        ("", "Mem:        2000         192        3000         4        71       1000\n", 2000 * KIB, None),
        (" -b", "Mem:        2048000         192        3000         4        71       1000\n", 2048000, None),
        (" -h", "Mem:\n", None, None),
    ],
)
def test_free(options: str, row: str, total: int | None, approximate: float | None) -> None:
    values = probe_host(TextSource(commands={f"free{options}": HEADER + row})).values
    memory = values.get("memory") or MemoryFacts()
    assert (memory.total_bytes, memory.approx_gib) == (total, approximate)


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    assert all(count >= 0 for count in parse_meminfo(text).values())
    probe_host(TextSource({"/proc/meminfo": text, f"{NODE}/node0/meminfo": text}, {"free -h": text, "free": text}))
