"""What a server's log tells of the machine that it ran on."""

from __future__ import annotations

import re

from velollm.probe.fields import Fields

_PLACE = "server log"
# ggml's device list: `- CPU : AMD Ryzen 7 5700X 8-Core Processor (64220 MiB, 64220 MiB free)`.
_DEVICE = re.compile(r"^\s{0,8}-? ?CPU\s{0,16}: (.{1,200}?) \((\d{1,12}) MiB, \d{1,12} MiB free\)", re.MULTILINE)
# llama.cpp: `system_info: n_threads = 8 (n_threads_batch = 8) / 16 | ...`; the last number is the
# machine's hardware threads (common/common.cpp, common_params_get_system_info).
_THREADS = re.compile(r"^.{0,200}?system_info: n_threads = \d{1,6}[^/\n]{0,80}/ (\d{1,6})\b", re.MULTILINE)
_BUILD = re.compile(r" for (?:Linux|Windows|Darwin) (x86_64|aarch64|arm64|AMD64|ppc64le)\b")
_MEMORY = re.compile(r'msg="system memory" total="([^"\n]{1,32})"')
# Maker's names that count the cores ("8-Core Processor").
_CORES_IN_NAME = re.compile(r"\b(\d{1,3})-Core Processor\b")


def read_log(text: str, cpu: Fields, memory: Fields) -> None:
    """Put what the log says; what its process may use is not in it, so usable cores stay unknown."""
    device = _DEVICE.search(text)
    if device is not None:
        cpu.put("model_name", device.group(1), _PLACE)
        memory.put("total_mib", int(device.group(2)), _PLACE)
    threads = _THREADS.search(text)
    if threads is not None:
        cpu.put("logical_cores", int(threads.group(1)), _PLACE)
    counted = _CORES_IN_NAME.search(str(cpu.get("model_name")))
    # The name tells the chip's cores; a virtual machine has fewer, and then the threads do not fit it.
    if counted is not None and cpu.get("logical_cores") in (int(counted.group(1)), 2 * int(counted.group(1))):
        cpu.put("physical_cores", int(counted.group(1)), _PLACE)
    build = _BUILD.search(text)
    if build is not None and cpu:
        cpu.put("architecture", {"AMD64": "x86_64"}.get(build.group(1), build.group(1)), _PLACE)
    total = _MEMORY.search(text)
    if total is not None:
        memory.put("total_text", total.group(1), _PLACE)
