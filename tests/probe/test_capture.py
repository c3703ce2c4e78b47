from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.probe.capture import CaptureSource, parse_grep_output, read_capture
from velollm.probe.machine import probe_capture


def capture(folder: Path, **texts: str) -> CaptureSource:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return read_capture(folder)


def test_names_stand_for_paths_and_commands(tmp_path: Path) -> None:
    source = capture(
        tmp_path,
        **{
            "proc_meminfo.txt": "MemTotal: 1 kB\n",
            "sys_fs_cgroup_cpu.max.txt": "max 100000\n",
            "proc_device-tree_compatible.txt": "maker,board\n",
            "nvidia-smi_-q_-x.xml": "<x/>",
            "system_profiler_SPHardwareDataType_-json.json": "{}",
        },
    )
    assert source.read("/proc/meminfo") == "MemTotal: 1 kB\n"
    assert source.read("/sys/fs/cgroup/cpu.max") == "max 100000\n"
    assert source.read("/proc/device-tree/compatible") == "maker,board\n"
    assert source.run(["nvidia-smi", "-q", "-x"]) == "<x/>"
    assert source.run(["system_profiler", "SPHardwareDataType", "-json"]) == "{}"
    assert source.read("/proc/cpuinfo") is None
    assert source.run(["lscpu"]) is None


def test_an_underline_may_be_a_slash_or_itself(tmp_path: Path) -> None:
    name = "sys_devices_system_cpu_cpu3_cpufreq_scaling_governor.txt"
    source = capture(tmp_path, **{name: "powersave\n"})
    path = "/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor"
    assert source.read(path) == "powersave\n"
    assert path in source.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")


def test_a_command_with_its_query_cut_short(tmp_path: Path) -> None:
    source = capture(
        tmp_path,
        **{
            "nvidia-smi_--query-gpu.csv": "index, name\n0, Made GPU\n",
            "nvidia-smi_--query-gpu.command.txt": "nvidia-smi --query-gpu=index,name --format=csv\n",
        },
    )
    assert source.run(["nvidia-smi", "--query-gpu=index,name", "--format=csv"]) == "index, name\n0, Made GPU\n"
    assert list(source.commands) == ["nvidia-smi --query-gpu"]


def test_grep_lines_with_colons_in_path_and_value() -> None:
    text = (
        "/proc/driver/nvidia/gpus/0004:05:00.0/numa_status:Node:      255\n"
        "/proc/driver/nvidia/gpus/0004:05:00.0/numa_status:Size:      3f0000000\n"
        "/sys/devices/pci0000:00/vendor:0x10de\n"
        "/proc/self/cgroup:0::/user.slice/x\n"
        "/sys/devices/system/cpu/isolated:\n"
        "not a line of grep\n"
    )
    assert parse_grep_output(text) == {
        "/proc/driver/nvidia/gpus/0004:05:00.0/numa_status": "Node:      255\nSize:      3f0000000\n",
        "/sys/devices/pci0000:00/vendor": "0x10de\n",
        "/proc/self/cgroup": "0::/user.slice/x\n",
        "/sys/devices/system/cpu/isolated": "\n",
    }


def test_grep_output_is_known_by_its_lines_too(tmp_path: Path) -> None:
    source = capture(tmp_path, **{"cpu_tree.txt": "/sys/devices/system/cpu/online:0-3\n"})
    assert source.read("/sys/devices/system/cpu/online") == "0-3\n"


def test_output_piped_through_grep_is_still_that_file(tmp_path: Path) -> None:
    source = capture(tmp_path, **{"proc_mounts_grep_cgroup.txt": "none /cg cgroup2 rw 0 0\n"})
    assert source.read("/proc/mounts") == "none /cg cgroup2 rw 0 0\n"


def test_logs_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    line = 'time=2025-07-17T14:54:15 level=INFO source=routes.go:1 msg="x"\n'
    source = capture(tmp_path, **{"server.log": "anything\n", "pasted.txt": line, "lscpu.txt": "CPU(s): 1\n"})
    assert set(source.logs) == {"server.log", "pasted.txt"}


def test_files_that_are_no_capture_are_left_out(tmp_path: Path) -> None:
    files = {"expected.yaml": "x: 1\n", "README.md": "# x\n", ".hidden": "x", "lscpu.txt": "CPU(s): 1\n"}
    assert list(capture(tmp_path, **files).commands) == ["lscpu"]


def test_damaged_bytes_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "lscpu.txt").write_bytes(
        b"\xef\xbb\xbfCPU(s): 2\r\nOn-line CPU(s) list: 0,1\r\nModel name: \xff\xfe\r\n"
    )
    cpu = probe_capture(tmp_path).cpu
    assert cpu is not None
    assert cpu.usable_cores == 2


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="cannot read the capture") as caught:
        probe_capture(tmp_path / "absent")
    assert caught.value.hint


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "lscpu.txt").write_text("CPU(s): 1\n")
    with pytest.raises(VeloError, match="cannot read the capture"):
        probe_capture(tmp_path / "lscpu.txt")


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing here\n")
    with pytest.raises(VeloError, match="holds no text"):
        probe_capture(tmp_path)


def test_unknown_texts_give_no_facts(tmp_path: Path) -> None:
    (tmp_path / "something.txt").write_text("nobody knows this tool\n")
    facts = probe_capture(tmp_path)
    assert (facts.os, facts.cpu, facts.memory, facts.gpus, facts.power) == (None, None, None, None, None)


@given(st.text(max_size=300), st.from_regex(r"[a-z_.*\[\]0-9-]{1,40}", fullmatch=True))
def test_no_text_raises(text: str, name: str) -> None:
    source = CaptureSource()
    source.add_name(name, text)
    source.add_name("sys_" + name, text)
    parse_grep_output(text)
    source.glob("/sys/class/*/x[0-9]*/" + name.replace("_", "/").replace("[", "").replace("]", ""))
    source.read("/" + name)
    source.run(name.split("_"))
