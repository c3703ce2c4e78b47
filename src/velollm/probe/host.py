"""The host's half of the facts: operating system, processor, memory, control group, power, heat, kind of machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from velollm.facts import CgroupFacts, CpuFacts, MemoryFacts, PowerFacts, ThermalFacts
from velollm.probe.cgroup import read_cgroup
from velollm.probe.cpu import read_linux_cpu
from velollm.probe.fields import Fields
from velollm.probe.loghost import read_log
from velollm.probe.macos import read_mac
from velollm.probe.memory import read_linux_memory
from velollm.probe.power import read_power, read_thermal
from velollm.probe.source import Source
from velollm.probe.system import read_system
from velollm.probe.windows import read_cim, read_psutil, read_psutil_power


@dataclass(frozen=True)
class HostProbe:
    """Sections and top-level values of the facts (by their names in `Facts`), and where each was read."""

    values: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def probe_host(source: Source, logs: Mapping[str, str] | None = None) -> HostProbe:
    """All that this source tells of the host; a section of which it tells nothing is left out.

    ``logs`` are server logs by file name: where there is one, it is from this machine.
    """
    logs = logs or {}
    system = read_system(source, logs.values())
    cpu, memory, cgroup_fields = Fields(), Fields(), Fields()
    power, thermal = read_power(source), read_thermal(source)
    if system.get("os") in ("linux", None):
        cgroup = read_cgroup(source)
        cgroup_fields = cgroup.fields if cgroup is not None else cgroup_fields
        read_linux_cpu(source, cgroup, cpu)
        read_linux_memory(source, cgroup, memory)
    elif system.get("os") == "macos" and read_mac(source, cpu, memory):
        system.put("unified_memory", True, cpu.place("architecture"))
    elif system.get("os") == "windows":
        read_cim(source, cpu, memory)
    if len(logs) == 1:
        read_log(next(iter(logs.values())), cpu, memory)
    if source.live and system.get("os") != "linux":
        read_psutil(cpu, memory)
        read_psutil_power(power)
    if system.get("os") in ("macos", "windows"):
        _put_usable(cpu)
    values: dict[str, Any] = dict(system.values)
    sources = dict(system.places)
    sections = {"cpu": (cpu, CpuFacts), "memory": (memory, MemoryFacts), "cgroup": (cgroup_fields, CgroupFacts),
                "power": (power, PowerFacts), "thermal": (thermal, ThermalFacts)}  # fmt: skip
    for name, (fields, kind) in sections.items():
        # lscpu describes the memory hierarchy (caches, NUMA nodes): the section is there, amounts unknown.
        if fields or (name == "memory" and not source.live and source.run(["lscpu"])):
            values[name] = kind(**fields.values)
            sources.update(fields.sources(name))
    return HostProbe(values, sources)


def _put_usable(cpu: Fields) -> None:
    """macOS and Windows (as VeloLLM is started there) let a process use every core that is on."""
    for usable, names in (
        ("usable_cores", ("online_cores", "logical_cores")),
        ("usable_physical_cores", ("online_physical_cores", "physical_cores")),
    ):
        for name in names:
            cpu.put(usable, cpu.get(name), cpu.place(name))
