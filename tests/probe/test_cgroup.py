from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.cgroup import CgroupReading, parse_cpu_max, parse_memberships, parse_mounts, read_cgroup
from velollm.probe.source import TextSource

ROOT = "/sys/fs/cgroup"
V1 = "4:memory:/a/b\n3:cpuset:/a\n2:cpu,cpuacct:/a/b\n1:name=systemd:/x\n"
UNLIMITED = "9223372036854771712\n"


def read(files: dict[str, str]) -> CgroupReading:
    reading = read_cgroup(TextSource(files))
    assert reading is not None
    return reading


def test_nothing_is_known_of_a_machine_without_groups() -> None:
    assert read_cgroup(TextSource({"/proc/meminfo": "MemTotal: 1 kB\n"})) is None


def test_version_2_takes_the_smallest_of_the_ancestors() -> None:
    reading = read(
        {
            "/proc/self/cgroup": "0::/pod/box\n",
            f"{ROOT}/pod/box/cpu.max": "max 100000\n",
            f"{ROOT}/pod/cpu.max": "250000 100000\n",
            f"{ROOT}/pod/box/memory.max": "8589934592\n",
            f"{ROOT}/pod/memory.max": "4294967296\n",
            f"{ROOT}/pod/memory.current": "2000\n",
            f"{ROOT}/pod/memory.stat": "anon 700\ninactive_file 1200\n",
            f"{ROOT}/pod/cpuset.cpus.effective": "0-3\n",
            f"{ROOT}/cpuset.cpus.effective": "0-63\n",
        }
    )
    assert reading.fields.values == {
        "version": 2, "cpuset": "0-3", "cpu_quota": 2.5, "memory_limit_bytes": 4 << 30
    }  # fmt: skip
    assert reading.fields.place("cpu_quota") == f"{ROOT}/pod/cpu.max"
    assert reading.memory is not None
    assert reading.memory.used_bytes == 800


def test_version_2_without_any_limit() -> None:
    reading = read({"/proc/self/cgroup": "0::/user.slice\n", f"{ROOT}/user.slice/memory.max": "max\n"})
    assert reading.fields.values == {"version": 2}
    assert reading.memory is None


def test_version_2_mounted_elsewhere_beside_version_1() -> None:
    mounts = "none /cgroup/freezer cgroup rw,freezer 0 0\nnone /cgroup/v2 cgroup2 rw 0 0\n"
    reading = read(
        {
            "/proc/mounts": mounts,
            "/proc/self/cpuset": "/job/step\n",
            "/cgroup/v2/job/step/cpuset.cpus.effective": "4-7\n",
            "/cgroup/v2/job/step/cpuset.mems.effective": "1\n",
        }
    )
    assert reading.fields.values == {"version": 2, "mount": "/cgroup/v2", "cpuset": "4-7", "mems": "1"}


def test_version_1_has_a_path_for_each_controller() -> None:
    reading = read(
        {
            "/proc/self/cgroup": V1,
            "/proc/mounts": f"cgroup {ROOT}/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n",
            f"{ROOT}/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
            f"{ROOT}/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
            f"{ROOT}/cpu,cpuacct/a/cpu.cfs_quota_us": "75000\n",
            f"{ROOT}/cpu,cpuacct/a/cpu.cfs_period_us": "50000\n",
            f"{ROOT}/cpuset/a/cpuset.effective_cpus": "0-7\n",
            f"{ROOT}/cpuset/a/cpuset.cpus": "0-31\n",
            f"{ROOT}/memory/a/b/memory.limit_in_bytes": UNLIMITED,
            f"{ROOT}/memory/a/memory.limit_in_bytes": "1073741824\n",
            f"{ROOT}/memory/memory.limit_in_bytes": UNLIMITED,
        }
    )
    assert reading.fields.values == {
        "version": 1, "cpuset": "0-7", "cpu_quota": 1.5, "memory_limit_bytes": 1 << 30
    }  # fmt: skip


def test_inside_a_container_only_the_mount_answers() -> None:
    v1 = read({"/proc/self/cgroup": "3:memory:/docker/abc\n", f"{ROOT}/memory/memory.limit_in_bytes": "512\n"})
    assert v1.fields.get("memory_limit_bytes") == 512
    v2 = read({"/proc/self/cgroup": "0::/../../x\n", f"{ROOT}/memory.max": "512\n"})
    assert v2.fields.get("memory_limit_bytes") == 512


def test_files_alone_tell_the_version() -> None:
    assert read({f"{ROOT}/cpu.max": "100000 100000\n"}).fields.values == {"version": 2, "cpu_quota": 1.0}
    v1 = {f"{ROOT}/cpu/cpu.cfs_quota_us": "50000\n", f"{ROOT}/cpu/cpu.cfs_period_us": "100000\n"}
    assert read(v1).fields.values == {"version": 1, "cpu_quota": 0.5}


def test_the_path_alone_tells_no_version() -> None:
    assert read_cgroup(TextSource({"/proc/self/cpuset": "/x\n"})) is None
    root = f"{ROOT}/cpuset"
    files = {f"{root}/cpuset.cpus": "0-7\n", f"{root}/x/cpuset.cpus": "2-3\n", "/proc/self/cpuset": "/x\n"}
    assert read(files).fields.values == {"version": 1, "cpuset": "2-3"}


def test_cpu_max() -> None:
    assert [parse_cpu_max(t) for t in ("50000 100000", "200000", "max 100000", "0 0", "1 2 3", "")] == [
        0.5, 2.0, None, None, None, None
    ]  # fmt: skip


@given(st.text(max_size=300), st.text(max_size=60))
def test_no_text_raises(text: str, other: str) -> None:
    parse_mounts(text)
    parse_memberships(text)
    quota = parse_cpu_max(text)
    assert quota is None or quota > 0
    read_cgroup(
        TextSource(
            {"/proc/self/cgroup": "0::/a\n" + text, "/proc/mounts": text, f"{ROOT}/a/memory.max": other,
             f"{ROOT}/a/memory.current": text, f"{ROOT}/a/cpuset.cpus": other, f"{ROOT}/a/cpu.max": other}
        )
    )  # fmt: skip
