"""What the kernel's log tells since the machine started: waking from sleep, and GPUs that were lost."""

from __future__ import annotations

import re

from velollm.facts import KernelFacts
from velollm.probe.source import Source
from velollm.probe.texts import captured_command, read_value

_COMMAND = ("journalctl", "-k", "-b", "-o", "cat", "-n", "20000", "--no-pager", "--quiet")
_BALANCING = "/proc/sys/kernel/numa_balancing"
# Linux kernel/power/suspend.c and kernel/power/hibernate.c: the line when the machine is awake again.
_RESUME = re.compile(r"PM: (?:suspend|hibernation) exit")
# NVIDIA, "XID Errors": 79 fallen off the bus, 119 and 120 its own processor does not answer, 154 a reset is needed.
# Linux drivers/gpu/drm/amd/amdgpu: a reset that failed, a device that is lost.
_LOST = re.compile(
    r"NVRM: (?:GPU [^\n]{0,80}has fallen off the bus|Xid \([^)\n]{1,40}\): (?:79|119|120|154),[^\n]{0,120})"
    r"|NVRM: (?:RmInitAdapter failed|rm_init_adapter failed)[^\n]{0,80}"
    r"|amdgpu [^\n]{0,60}: (?:amdgpu: )?(?:GPU reset(?:\(\d+\))? failed|device lost from bus|GPU recovery failed)"
)
_FEW = 5
_GPU_DRIVERS = ("/dev/nvidia*", "/proc/driver/nvidia/version", "/dev/kfd")


def read_kernel(source: Source) -> KernelFacts | None:
    """What the kernel tells; None where it tells nothing of this. Of its log only where somebody may read it."""
    text = _read_log(source)
    balancing = {"1": True, "2": True, "0": False}.get(read_value(source, _BALANCING) or "")
    if text is None and balancing is None:
        return None
    resumes, errors = parse_kernel_log(text) if text is not None else (None, ())
    return KernelFacts(resumes=resumes, gpu_errors=errors, numa_balancing=balancing)


def _read_log(source: Source) -> str | None:
    if not source.live:
        return captured_command(source, "journalctl", "-k", "-b") or captured_command(source, "dmesg")
    if not any(source.glob(pattern) for pattern in _GPU_DRIVERS):  # Reading it takes time, for nothing then.
        return None
    return source.run(_COMMAND) or source.run(["dmesg"])


def parse_kernel_log(text: str) -> tuple[int, tuple[str, ...]]:
    """How often the machine woke up, and the last few lines in which a GPU was lost."""
    lost = dict.fromkeys(match.group().strip() for match in _LOST.finditer(text))
    return len(_RESUME.findall(text)), tuple(lost)[-_FEW:]
