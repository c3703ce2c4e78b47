"""The kernel's log: sleep, and GPUs that were lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.kernel import parse_kernel_log, read_kernel
from velollm.probe.source import TextSource

SLEPT = "PM: suspend entry (deep)\nFilesystems sync: 0.01 seconds\nPM: suspend exit\n"


def test_waking_up_is_counted() -> None:
    assert parse_kernel_log(SLEPT * 3 + "PM: hibernation exit\n") == (4, ())
    assert parse_kernel_log("PM: suspend entry (s2idle)\n") == (0, ())


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("NVRM: GPU at PCI:0000:01:00: GPU-1 has fallen off the bus.", True),
        ("NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.", True),
        ("NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", True),
        ("NVRM: Xid (PCI:0000:01:00): 119, pid=1, Timeout waiting for RPC from GSP!", True),
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=1, Ch 00000010, intr 10000000. MMU Fault", False),
        ("NVRM: RmInitAdapter failed! (0x26:0x56:1463)", True),
        ("amdgpu 0000:03:00.0: amdgpu: GPU reset(2) failed", True),
        ("amdgpu 0000:03:00.0: amdgpu: GPU reset begin!", False),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.1", False),
    ],
)
def test_gpus_that_were_lost(line: str, lost: bool) -> None:
    _, errors = parse_kernel_log(f"[  12.3] {line}\n")
    assert bool(errors) is lost
    assert all(error in line for error in errors)


def test_the_same_line_counts_once_and_only_the_last_few_are_kept() -> None:
    lines = [f"NVRM: Xid (PCI:0000:0{number}:00): 79, gone" for number in range(8)]
    _, errors = parse_kernel_log("\n".join(lines * 2))
    assert len(errors) == 5
    assert errors[-1] == lines[-1]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    resumes, errors = parse_kernel_log(text)
    assert resumes >= 0
    assert len(errors) <= 5


def test_a_captured_machine() -> None:
    files = {"/proc/sys/kernel/numa_balancing": "1\n"}
    found = read_kernel(TextSource(files, {"journalctl -k -b": SLEPT}))
    assert found is not None
    assert (found.resumes, found.gpu_errors, found.numa_balancing) == (1, (), True)
    unread = read_kernel(TextSource(files))
    assert unread is not None
    assert unread.resumes is None
    assert read_kernel(TextSource()) is None
