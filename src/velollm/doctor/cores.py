"""What an engine would start by itself, compared by several checks."""

from __future__ import annotations

from velollm.doctor.environment import judged_environment
from velollm.facts import CpuFacts, Facts


def estimate_engine_threads(cpu: CpuFacts) -> int | None:
    """Threads that llama.cpp starts by itself: performance cores, else physical ones, else half of all CPUs.

    llama.cpp, common/common.cpp at b10488 (`cpu_get_num_math`): up to 4 CPUs count whole. It
    looks at neither cpuset nor CPU quota.
    """
    if cpu.efficiency_cores and cpu.performance_cores:
        return cpu.performance_cores
    if cpu.physical_cores:
        return cpu.physical_cores
    if cpu.logical_cores is None:
        return None
    return cpu.logical_cores if cpu.logical_cores <= 4 else cpu.logical_cores // 2


def whole_number(facts: Facts, name: str) -> int | None:
    """Value of a variable where it is a positive whole number: of the server, where one runs, else of this process."""
    env = judged_environment(facts)
    text = env.get(name).strip() if env else ""
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) > 0 else None


def uses_ollama(facts: Facts) -> bool:
    """Is there a sign of Ollama: a server of its kind, or one of its variables?"""
    if facts.server is not None and facts.server.engine == "ollama":
        return True
    return any(name.startswith("OLLAMA_") for name in facts.environment or {})
