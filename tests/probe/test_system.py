from __future__ import annotations

from typing import Any

import pytest

from velollm.probe.source import TextSource
from velollm.probe.system import read_board, read_system


def system(files: dict[str, str] | None = None, commands: dict[str, str] | None = None, *logs: str) -> dict[str, Any]:
    return read_system(TextSource(files, commands), logs).values


@pytest.mark.parametrize(
    ("commands", "name"),
    [
        ({"lscpu": "CPU(s): 1"}, "linux"),
        ({"rocm-smi -a --json": "{}"}, "linux"),
        ({"sysctl hw": "hw.ncpu: 8"}, "macos"),
        ({"system_profiler SPDisplaysDataType -json": "{}"}, "macos"),
        ({"Get-CimInstance Win32_Processor": "Name : x"}, "windows"),
        ({"nvidia-smi --query-gpu": "0, RTX, 515.65.01, 24576 MiB"}, "linux"),
        ({"nvidia-smi": "| 0  RTX  WDDM | 610.62"}, "windows"),
        ({"nvidia-smi -q -x": "<driver_version>418.43</driver_version>"}, None),
        ({"xpu-smi discovery": "| DRM Device: /dev/dri/card0 |"}, "linux"),
        ({"uname -a": "Darwin mac 24.0.0 arm64"}, "macos"),
        ({"something": "else"}, None),
    ],
)
def test_operating_system(commands: dict[str, str], name: str | None) -> None:
    assert system(commands=commands).get("os") == name


def test_operating_system_of_a_log() -> None:
    linux = "level=INFO source=gpu_linux.go:1"
    assert system(None, None, linux)["os"] == "linux"
    assert "os" not in system(None, None, linux, linux), "logs of several machines are of none"
    assert system(None, None, "source=gpu_windows.go:214 cores=8")["os"] == "windows"


@pytest.mark.parametrize(
    ("files", "container"),
    [
        ({"/.dockerenv": ""}, "docker"),
        ({"/run/.containerenv": ""}, "podman"),
        ({"/proc/1/environ": "PATH=/bin\x00container=lxc\x00"}, "lxc"),
        ({"/proc/self/cgroup": "0::/kubepods.slice/cri-containerd-1.scope\n"}, "kubernetes"),
        ({"/proc/self/cgroup": "5:cpu:/docker/0123456789ab\n"}, "docker"),
        ({"/proc/mounts": "overlay / overlay rw,upperdir=/var/lib/docker/overlay2/x 0 0\n"}, "docker"),
        ({"/proc/mounts": "/dev/sda1 / ext4 rw 0 0\noverlay /var/lib/docker/overlay2/x/merged overlay rw 0 0\n"}, None),
        ({"/proc/self/cgroup": "0::/user.slice/user-1000.slice\n"}, None),
    ],
)
def test_container(files: dict[str, str], container: str | None) -> None:
    assert system(files).get("container") == container


def test_wsl_and_virtual_machine() -> None:
    wsl = system(
        {"/proc/version": "Linux version 6.6.0-microsoft-standard-WSL2", "/proc/cpuinfo": "flags\t: fpu hypervisor\n"}
    )
    assert (wsl["wsl"], wsl["virtual_machine"], wsl["os"]) == (True, True, "linux")
    metal = system({"/proc/version": "Linux version 6.6.0", "/proc/cpuinfo": "flags\t: fpu avx\n"})
    assert (metal["wsl"], metal["virtual_machine"]) == (False, False)
    assert "virtual_machine" not in system({"/proc/cpuinfo": "Features\t: asimd\n"}), "Arm has no such flag"
    assert system({"/sys/class/dmi/id/sys_vendor": "QEMU\n"})["virtual_machine"] is True
    bare = {"/sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "/sys/class/dmi/id/product_name": "c7g.metal\n"}
    assert "virtual_machine" not in system(bare)
    assert system(commands={"lscpu": "Hypervisor vendor:  KVM\n"})["virtual_machine"] is True


def test_a_mac_with_linux_has_no_metal() -> None:
    files = {"/proc/device-tree/compatible": "apple,j314s\x00apple,t6000\x00apple,arm-platform\x00"}
    assert system(files)["not_metal"] is True


def test_board() -> None:
    assert read_board(TextSource({"/proc/device-tree/model": "Some Board\x00"})) == (
        "Some Board",
        "/proc/device-tree/model",
    )
    assert read_board(TextSource({"/sys/class/dmi/id/product_name": "System Product Name\n"})) is None
