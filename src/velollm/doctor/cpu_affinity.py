"""CPUs that this process is kept away from."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.facts import Facts
from velollm.units import parse_cpu_list

_NAME = "cpu-affinity"
_WHY = "an engine counts all cores of the machine, and its threads then crowd the few that it may use"


def run(facts: Facts) -> Iterator[Finding]:
    """Notes an affinity mask or a cpuset that holds fewer CPUs than are online.

    It may be meant so (a job scheduler, a container), and a server can have another mask than this
    command; but an engine counts the cores of the whole machine and starts a thread for each.
    """
    online = facts.cpu.online_cores or facts.cpu.logical_cores if facts.cpu else None
    if online is None:
        return
    cpuset = facts.cgroup.cpuset if facts.cgroup else None
    for path, text in (("cpu.affinity", facts.cpu.affinity if facts.cpu else None), ("cgroup.cpuset", cpuset)):
        cpus = parse_cpu_list(text) if text else None
        if cpus and len(cpus) < online:
            threads = facts.cpu.usable_physical_cores if facts.cpu and facts.cpu.usable_physical_cores else len(cpus)
            yield Finding(
                _NAME,
                "note",
                f"only {len(cpus)} of {online} CPUs may be used here",
                (evidence(facts, path, text), evidence(facts, "cpu.online_cores", online)),
                f"export LLAMA_ARG_THREADS={threads}",
                _WHY,
            )
            return


check = Check(_NAME, "Affinity mask and cpuset", "note", True, run)
