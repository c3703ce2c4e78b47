"""More than one NUMA node."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.doctor.environment import judged_environment
from velollm.doctor.mend import noted
from velollm.facts import Facts
from velollm.units import parse_cpu_list

_NAME = "numa"
_WHY = "half of the weights lie at the other node, and are read at a fraction of the speed"
_VARIABLE = "LLAMA_ARG_NUMA"


def run(facts: Facts) -> Iterator[Finding]:
    """Notes several NUMA nodes of which the engine is not told, on a machine that answers on its processors.

    Without LLAMA_ARG_NUMA the weights lie where they were first read, and threads run anywhere. With it set, the
    kernel's own balancing works against the engine, which llama.cpp warns of (ggml-cpu.c): that is a
    warning. It is measured with `velollm bench`; more than one node is no fault by itself.
    """
    nodes = facts.cpu.numa_nodes if facts.cpu else None
    env = judged_environment(facts)
    if nodes is None or nodes < 2 or facts.gpus != () or env is None:
        return
    here = parse_cpu_list(facts.cgroup.mems) if facts.cgroup and facts.cgroup.mems else None
    if here is not None and len(here) < 2:
        return
    seen = evidence(facts, "cpu.numa_nodes", f"{nodes} nodes")
    if _VARIABLE not in env:
        title = f"{nodes} NUMA nodes, and the engine is not told: {_VARIABLE} is not set"
        fix = noted(env.set(_VARIABLE, "distribute"), "and compare with `velollm bench`")
        yield Finding(_NAME, "note", title, (seen,), fix, _WHY)
    elif facts.kernel is not None and facts.kernel.numa_balancing is True:
        title = f"the kernel moves memory between NUMA nodes, against {_VARIABLE}={env.get(_VARIABLE)}"
        shown = (seen, *env.seen(_VARIABLE), evidence(facts, "kernel.numa_balancing", "on"))
        why = "pages of the weights are moved in the middle of an answer"
        yield Finding(_NAME, "warning", title, shown, "sudo sysctl kernel.numa_balancing=0", why)


check = Check(_NAME, "NUMA nodes", "warning", True, run)
