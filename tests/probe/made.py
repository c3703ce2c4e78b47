"""Made-up machines for tests of the host's probe: texts as kernels print them, in few words."""

from __future__ import annotations

from velollm.facts import CpuFacts
from velollm.probe.host import probe_host
from velollm.probe.source import TextSource

CPU = "/sys/devices/system/cpu"


def x86_cpuinfo(
    rows: list[tuple[int, int, int]], siblings: int, cores: int, *, model: int = 85, vendor: str = "GenuineIntel",
    family: int = 6, flags: str = "fpu lm avx avx2",
) -> str:  # fmt: skip
    """`/proc/cpuinfo` of processors given as (number, physical id, core id)."""
    blocks = [
        f"processor\t: {number}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: Made CPU\nphysical id\t: {socket}\nsiblings\t: {siblings}\ncore id\t\t: {core}\n"
        f"cpu cores\t: {cores}\nflags\t\t: {flags}\n"
        for number, socket, core in rows
    ]
    return "\n".join(blocks)


def arm_cpuinfo(parts: list[str], implementer: str = "0x41") -> str:
    """`/proc/cpuinfo` of an Arm machine, a part number for each processor."""
    return "\n".join(
        f"processor\t: {n}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n"
        for n, part in enumerate(parts)
    )


def tree(
    siblings: list[str], *, online: str | None = None, present: str | None = None, package: int = 0
) -> dict[str, str]:
    """`/sys/devices/system/cpu` with a list of siblings for each CPU from 0 on."""
    files = {f"{CPU}/cpu{n}/topology/thread_siblings_list": text + "\n" for n, text in enumerate(siblings)}
    files |= {f"{CPU}/cpu{n}/topology/physical_package_id": f"{package}\n" for n in range(len(siblings))}
    everything = f"0-{len(siblings) - 1}" if len(siblings) > 1 else "0"
    return files | {f"{CPU}/online": online or everything, f"{CPU}/present": present or everything}


def each(name: str, values: list[int]) -> dict[str, str]:
    """One value of each CPU, such as ``cpufreq/cpuinfo_max_freq``."""
    return {f"{CPU}/cpu{n}/{name}": f"{value}\n" for n, value in enumerate(values)}


def cpu_of(files: dict[str, str] | None = None, commands: dict[str, str] | None = None) -> CpuFacts:
    """The processor that the probe sees in these texts."""
    cpu = probe_host(TextSource(files, commands)).values["cpu"]
    assert isinstance(cpu, CpuFacts)
    return cpu
