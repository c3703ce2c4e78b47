from __future__ import annotations

import os
from pathlib import Path

from tests.probe.made import tree, x86_cpuinfo
from velollm.probe.machine import probe_machine
from velollm.probe.source import LiveSource, TextSource


def test_this_machine() -> None:
    facts = probe_machine(sample_s=0.05)
    assert facts.os in ("linux", "macos", "windows")
    assert facts.cpu is not None
    assert facts.cpu.usable_cores is not None
    assert 1 <= facts.cpu.usable_cores <= (os.cpu_count() or 1)
    assert facts.memory is not None
    assert facts.memory.total_bytes
    assert facts.load is not None
    assert facts.load.sampled_s is not None
    assert facts.load.sampled_s >= 0.05
    assert facts.environment is not None
    assert facts.sources["memory.total_bytes"]


def test_a_machine_laid_out_in_a_folder(tmp_path: Path) -> None:
    files = {"/proc/cpuinfo": x86_cpuinfo([(0, 0, 0), (1, 0, 0)], 2, 1), "/proc/meminfo": "MemTotal: 2048 kB\n"}
    for path, text in (files | tree(["0-1", "0-1"])).items():
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    facts = probe_machine(LiveSource(tmp_path), sample_s=0)
    assert facts.cpu is not None
    assert (facts.cpu.physical_cores, facts.cpu.logical_cores, facts.cpu.usable_physical_cores) == (1, 2, 1)
    assert facts.memory is not None
    assert facts.memory.total_bytes == 2048 * 1024
    assert facts.load is None


def test_unreadable_files_leave_facts_unknown() -> None:
    facts = probe_machine(TextSource({"/proc/meminfo": ""}), sample_s=0)
    assert (facts.os, facts.cpu, facts.memory, facts.cgroup) == ("linux", None, None, None)
