from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import LoadFacts
from velollm.probe.live import (
    LoadSample,
    busy_shares,
    parse_proc_stat,
    parse_task_stat,
    read_devices,
    read_environment,
    read_libraries,
    sample_load,
)
from velollm.probe.source import LiveSource, TextSource

HZ = os.sysconf("SC_CLK_TCK")


def stat_line(cpu: int, user_s: float, idle_s: float) -> str:
    return f"cpu{cpu} {int(user_s * HZ)} 0 0 {int(idle_s * HZ)} 0 0 0 0 0 0\n"


def task(pid: int, parent: int, busy_s: float, cpu: int, name: str = "x") -> str:
    words = ["S", str(parent), *["0"] * 9, str(int(busy_s * HZ)), "0", *["0"] * 23, str(cpu), *["0"] * 13]
    return f"{pid} ({name}) {' '.join(words)}\n"


class Recorded(TextSource):
    """A machine whose files change when the sampler waits."""

    def __init__(self, before: dict[str, str], after: dict[str, str]) -> None:
        super().__init__(dict(before))
        self._after = after
        self.waited: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.files.update(self._after)


def tasks(pid: int, parent: int, busy_s: float, cpu: int, name: str = "x") -> dict[str, str]:
    text = task(pid, parent, busy_s, cpu, name)
    return {f"/proc/{pid}/stat": text, f"/proc/{pid}/task/{pid}/stat": text}


def test_a_neighbour_is_seen_and_our_own_processes_are_not() -> None:
    before = {
        "/proc/stat": "cpu  1 2 3 4\n" + stat_line(0, 10, 10) + stat_line(1, 10, 10),
        "/proc/loadavg": "1.5 1.2 0.75 1/2 3\n",
    }
    before |= tasks(50, 1, 4, 0) | tasks(51, 50, 4, 1, "a (b) c") | tasks(99, 1, 2, 0)
    # For one second: CPU 0 is filled by a neighbour; our child uses half of CPU 1.
    after = {"/proc/stat": stat_line(0, 11, 10) + stat_line(1, 10.5, 10.5)} | tasks(51, 50, 4.5, 1, "a (b) c")
    after |= tasks(99, 1, 3, 0)
    machine = Recorded(before, after)
    ticks = iter([5.0, 6.0])
    load = sample_load(1.0, source=machine, wait=machine.wait, clock=lambda: next(ticks), pid=50)
    assert machine.waited == [1.0]
    assert (load.busy_cores_now, load.busy_per_cpu, load.sampled_s) == (1.0, (1.0, 0.0), 1.0)
    assert (load.load_1m, load.load_15m) == (1.5, 0.75)


def test_a_machine_that_does_not_tell() -> None:
    machine = Recorded({"/proc/stat": "intr 5\n"}, {})
    load = sample_load(0.1, source=machine, wait=machine.wait, pid=1)
    assert (load.busy_cores_now, load.busy_per_cpu, load.load_15m) == (None, None, None)


def test_own_time_on_another_cpu_still_counts_as_own() -> None:
    first = LoadSample({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, {None: 0.0})
    second = LoadSample({0: 1.0, 1: 0.5}, {0: 1.0, 1: 1.0}, {None: 1.0})
    assert busy_shares(first, second) == (0.5, [1.0, 0.5])


def test_counters_that_stand_still_tell_nothing() -> None:
    sample = LoadSample({0: 1.0}, {0: 2.0}, {})
    assert busy_shares(sample, sample) is None


def test_what_our_own_child_burns_is_left_out() -> None:
    spin = "import time\nprint('ready', flush=True)\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    found: dict[str, LoadFacts] = {}

    def sample_as_ourselves(seconds: float) -> None:
        found["others"] = sample_load(seconds)

    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            # The same moment seen by a process that does not exist: to it, the child is a neighbour.
            found["all"] = sample_load(0.4, wait=sample_as_ourselves, pid=2**30)
        finally:
            child.kill()
    busy, others = found["all"].busy_cores_now, found["others"].busy_cores_now
    assert busy is not None
    assert others is not None
    assert busy - others > 0.15


def test_devices() -> None:
    pci = "/sys/bus/pci/devices"
    source = TextSource(
        {
            "/dev/dri/card0": "", "/dev/dri/renderD128": "", "/dev/nvidia0": "", "/dev/kfd": "",
            f"{pci}/0000:01:00.0/class": "0x030000\n", f"{pci}/0000:01:00.0/vendor": "0x10de\n",
            f"{pci}/0000:01:00.1/class": "0x040300\n", f"{pci}/0000:01:00.1/vendor": "0x10de\n",
            f"{pci}/0000:03:00.0/class": "0x120000\n", f"{pci}/0000:03:00.0/vendor": "0x1002\n",
            f"{pci}/0000:04:00.0/class": "0x030000\n", f"{pci}/0000:04:00.0/vendor": "0x1a03\n",
        }
    )  # fmt: skip
    assert read_devices(source) == {
        "dri": ("/dev/dri/card0", "/dev/dri/renderD128"), "kfd": ("/dev/kfd",), "nvidia": ("/dev/nvidia0",),
        "pci:nvidia": ("0000:01:00.0",), "pci:amd": ("0000:03:00.0",), "pci:intel": (),
    }  # fmt: skip


def test_libraries() -> None:
    assert read_libraries(TextSource({"/usr/lib/x86_64-linux-gnu/libgomp.so.1": ""})) == {"libgomp.so.1": True}
    listed = TextSource(commands={"ldconfig -p": "\tlibgomp.so.1 (libc6,x86-64) => /opt/lib/libgomp.so.1\n"})
    assert read_libraries(listed) == {"libgomp.so.1": True}
    assert read_libraries(TextSource()) == {"libgomp.so.1": False}


def test_library_in_a_laid_out_root(tmp_path: Path) -> None:
    (tmp_path / "usr/lib64").mkdir(parents=True)
    (tmp_path / "usr/lib64/libgomp.so.1").write_bytes(b"")
    assert read_libraries(LiveSource(tmp_path))["libgomp.so.1"] is True


def test_environment_keeps_engine_variables_and_no_secrets() -> None:
    env = {
        "OLLAMA_NUM_PARALLEL": "4", "LLAMA_ARG_THREADS": "2", "OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": "0",
        "CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "", "HOME": "/root", "MY_OLLAMA_HOST": "x",
        "LLAMA_API_KEY": "secret", "OLLAMA_AUTH": "secret",
    }  # fmt: skip
    found = read_environment(env)
    assert sorted(found) == [
        "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "LLAMA_API_KEY", "LLAMA_ARG_THREADS", "OLLAMA_AUTH",
        "OLLAMA_NUM_PARALLEL", "OMP_NUM_THREADS", "ROCR_VISIBLE_DEVICES",
    ]  # fmt: skip
    assert found["LLAMA_API_KEY"] == found["OLLAMA_AUTH"] == "(set)"


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    busy, total = parse_proc_stat(text + "\ncpu0 1 2 3 4 " + text)
    assert busy.keys() == total.keys()
    parse_task_stat(text)
    parse_task_stat("1 (x) " + text)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8))
def test_shares_stay_between_zero_and_one(rows: list[tuple[float, float, float]]) -> None:
    zero = dict.fromkeys(range(len(rows)), 0.0)
    total = {cpu: busy + idle for cpu, (busy, idle, _) in enumerate(rows)}
    second = LoadSample({c: r[0] for c, r in enumerate(rows)}, total, {c: r[2] for c, r in enumerate(rows)})
    shares = busy_shares(LoadSample(zero, zero, {}), second)
    if shares is None:
        assert not any(total.values())
        return
    assert 0 <= shares[0] <= len(rows) + 1e-9
    assert all(0 <= share <= 1 for share in shares[1])
