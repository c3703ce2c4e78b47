"""What kind of machine this is: operating system, container, virtual machine, WSL, board."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable

from velollm.probe.arm import apple_chip
from velollm.probe.fields import Fields
from velollm.probe.source import Source, TextSource
from velollm.probe.texts import read_value

_DMI = "/sys/class/dmi/id"
_COMPATIBLE = "/proc/device-tree/compatible"

# `sys_vendor` or `product_name` of a hypervisor's made-up mainboard (systemd: src/basic/virt.c).
_VM_BOARDS = re.compile(
    r"QEMU|KVM|VMware|VirtualBox|innotek|Xen|Bochs|Parallels|BHYVE|Google Compute Engine|OpenStack|Apple Virtualization"
    r"|Hyper-V|Virtual Machine|Amazon EC2|Alibaba Cloud ECS|DigitalOcean|Droplet",
    re.IGNORECASE,
)
_CONTAINER_MARKS = (
    ("kubernetes", re.compile(r"kubepods|kubelet")),
    ("podman", re.compile(r"libpod|/containers/storage/overlay")),
    ("docker", re.compile(r"/docker[/-]|docker-[0-9a-f]{12}|/docker/overlay2|/var/lib/docker")),
    ("lxc", re.compile(r"(?:^|[:/])lxc(?:\.payload|/|\.)|/lxc/|lxcfs")),
    ("containerd", re.compile(r"containerd|cri-")),
)
_HYPERVISOR = re.compile(r"^Hypervisor vendor:[ \t]*\S", re.MULTILINE)
_COMMANDS_OF = {
    "linux": {"lscpu", "free", "nproc", "rocm-smi", "ldconfig", "lspci", "tegrastats", "nvpmodel", "vcgencmd"},
    "macos": {"sysctl", "system_profiler", "sw_vers", "vm_stat", "pmset"},
    "windows": {"Get-CimInstance", "Get-WmiObject", "wmic", "systeminfo", "Get-ComputerInfo"},
}
_LIVE_NAMES = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}


def read_system(source: Source, logs: Iterable[str] = ()) -> Fields:
    """Values for the top level of the facts: ``os``, ``container``, ``virtual_machine``, ``wsl``, ``not_metal``."""
    fields = Fields()
    name, place = _operating_system(source, tuple(logs))
    fields.put("os", name, place)
    if name in (None, "linux"):
        _put_wsl(source, fields)
        _put_container(source, fields)
        _put_virtual_machine(source, fields)
        if apple_chip(source.read(_COMPATIBLE)) is not None:
            fields.put("not_metal", True, _COMPATIBLE)
        elif re.search(r"^CPU implementer\s*: 0x61$", source.read("/proc/cpuinfo") or "", re.MULTILINE):
            fields.put("not_metal", True, "/proc/cpuinfo")
    return fields


def read_board(source: Source) -> tuple[str, str] | None:
    """Name of the mainboard or device, and where it was read."""
    for path in ("/proc/device-tree/model", f"{_DMI}/product_name"):
        value = read_value(source, path)
        if value and value.lower() not in ("system product name", "to be filled by o.e.m.", "default string"):
            return value, path
    return None


def _operating_system(source: Source, logs: tuple[str, ...]) -> tuple[str | None, str]:
    if source.live:
        return _LIVE_NAMES.get(platform.system()), "platform"
    if isinstance(source, TextSource):
        kernel_path = next((path for path in source.files if re.match(r"/(?:proc|sys)/", path)), None)
        if kernel_path is not None:
            return "linux", kernel_path
        for name, programs in _COMMANDS_OF.items():
            found = next((c for c in source.commands if c.split(" ")[0].removesuffix(".exe") in programs), None)
            if found is not None:
                return name, found
        guesses = [(guess, c) for c, text in source.commands.items() if (guess := _of_tool_text(c, text)) is not None]
        if guesses:
            return guesses[0]
    # A capture with the logs of several machines has no operating system of its own.
    names = {_of_log(text) for text in logs}
    return (names.pop(), "server log") if len(names) == 1 and len(logs) == 1 else (None, "")


def _of_tool_text(command: str, text: str) -> str | None:
    if command == "uname" or command.startswith("uname "):
        word = re.search(r"\b(Linux|Darwin)\b", text)
        return _LIVE_NAMES[word.group(1)] if word is not None else None
    if re.search(r"[A-Z]:\\Windows\\", text) or (
        command.startswith("nvidia-smi") and re.search(r"\b(?:WDDM|TCC|MCDM)\b", text)
    ):
        return "windows"
    # NVIDIA's Linux drivers of today have three numbers (535.54.03), those for Windows two (610.62).
    # Two numbers tell nothing: old Linux drivers had two as well (418.43).
    if command.startswith("nvidia-smi") and re.search(r"\b[3-9]\d\d\.\d{2,3}\.\d{2}\b", text):
        return "linux"
    if re.search(r"(?:^|\s|\")/dev/(?:dri/|nvidia|kfd)", text):
        return "linux"
    return None


def _of_log(text: str) -> str | None:
    if re.search(r"gpu_windows\.go|[A-Z]:\\\\?Users\\|for Windows ", text):
        return "windows"
    if re.search(r"library=metal|gpu_darwin\.go|for Darwin |/Applications/Ollama\.app", text, re.IGNORECASE):
        return "macos"
    if re.search(r" for Linux |gpu_linux\.go|amd_linux\.go|(?:^|[ \"=])/usr/(?:local/)?lib/ollama/", text):
        return "linux"
    return None


def _put_wsl(source: Source, fields: Fields) -> None:
    for path in ("/proc/sys/kernel/osrelease", "/proc/version"):
        text = source.read(path)
        if text is not None:
            fields.put("wsl", "microsoft" in text.lower(), path)


def _put_container(source: Source, fields: Fields) -> None:
    environ = source.read("/proc/1/environ") or ""
    named = re.search(r"(?:^|\x00)container=([A-Za-z0-9_-]{1,32})", environ)
    if source.glob("/run/secrets/kubernetes.io/serviceaccount*"):
        fields.put("container", "kubernetes", "/run/secrets/kubernetes.io/serviceaccount")
    if named is not None:
        fields.put("container", named.group(1), "/proc/1/environ")
    if source.read("/run/.containerenv") is not None:
        fields.put("container", "podman", "/run/.containerenv")
    if source.read("/.dockerenv") is not None:
        fields.put("container", "docker", "/.dockerenv")
    for path in ("/proc/self/cgroup", "/proc/1/cgroup", "/proc/mounts"):
        text = source.read(path) or ""
        if path == "/proc/mounts":
            # Only the root of this process counts: a host that runs containers has their mounts as well.
            text = "\n".join(line for line in text.splitlines() if re.match(r"\S+ / |lxcfs ", line))
        for name, mark in _CONTAINER_MARKS:
            if mark.search(text):
                fields.put("container", name, path)


def _put_virtual_machine(source: Source, fields: Fields) -> None:
    vendor, product = read_value(source, f"{_DMI}/sys_vendor"), read_value(source, f"{_DMI}/product_name")
    if (_VM_BOARDS.search(vendor or "") or _VM_BOARDS.search(product or "")) and ".metal" not in (product or ""):
        fields.put("virtual_machine", True, f"{_DMI}/product_name")
    flags = re.search(r"^flags\s*:(.*)$", source.read("/proc/cpuinfo") or "", re.MULTILINE)
    if flags is not None:
        fields.put("virtual_machine", "hypervisor" in flags.group(1).split(), "/proc/cpuinfo")
    if "virtual_machine" not in fields.values and _HYPERVISOR.search(source.run(["lscpu"]) or ""):
        fields.put("virtual_machine", True, "lscpu")
