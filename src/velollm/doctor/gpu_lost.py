"""A GPU that was lost: after sleep, or off the bus."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, RestartMend, evidence
from velollm.doctor.mend import restart
from velollm.facts import Facts

_NAME = "gpu-lost"
_WHY = "everything runs on the processor until the driver is loaded again"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a GPU that the kernel lost, and one that the server no longer finds after the machine slept.

    The kernel's log names a card that has fallen off the bus. After sleep NVIDIA's driver can be there
    while CUDA is not (Ollama's documentation, gpu.mdx: reload `nvidia_uvm`): then the server lists the
    processor alone, though the card is there, and the engine says that it failed to initialize it or
    the machine woke up since it started.
    """
    kernel, server = facts.kernel, facts.server
    if kernel is not None and kernel.gpu_errors:
        found = tuple(evidence(facts, "kernel.gpu_errors", line) for line in kernel.gpu_errors[-2:])
        fix = "sudo reboot  # if it comes back: look at the card's power supply and slot"
        yield Finding(_NAME, "critical", "the kernel lost a GPU since the machine started", found, fix, _WHY)
        return
    work = server.activity if server is not None else None
    nodes = facts.devices.get("nvidia", ())
    there = bool(nodes) or any(gpu.vendor == "nvidia" for gpu in facts.gpus or ())
    if server is None or work is None or server.remote or not there or work.compute != ("cpu",):
        return
    lost = [evidence(facts, "server.activity", line) for line in work.gpu_errors[-2:]]
    slept = kernel is not None and bool(kernel.resumes)
    if kernel is not None and slept:
        lost.append(evidence(facts, "kernel.resumes", f"woke up {kernel.resumes} times since the start"))
    if not lost:
        return
    lost.append(evidence(facts, "server.activity", "inference compute: cpu only"))
    lost.append(Evidence("devices", nodes[0] if nodes else "an NVIDIA GPU answers its driver"))
    fix = f"sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm  # then: {restart(server)}"
    title = "the server lost the NVIDIA GPU when the machine slept" if slept else "the engine cannot begin with the GPU"
    yield Finding(_NAME, "warning", title, tuple(lost), fix, _WHY, RestartMend())


check = Check(_NAME, "GPU that was lost", "critical", True, run)
