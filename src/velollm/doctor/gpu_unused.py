"""A GPU that the server does not use."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.doctor.base import Check, Evidence, Finding, RestartMend, evidence
from velollm.doctor.mend import restart, unset_variable
from velollm.facts import Facts, GpuFacts, ServerFacts
from velollm.units import GIB, render_bytes

_NAME = "gpu-unused"
_WHY = "everything runs on the processor, several times slower than on the GPU"
_LEAST_BYTES = 2 * GIB
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a server that works on the processor though a GPU that it could use is there.

    The server's own list of devices counts (`inference compute` in its log), else a loaded model
    without a byte on the GPU. A GPU that was lost while the machine slept comes back with a
    restart of the server. Where a variable hides the GPU from the server, that is a note.
    """
    server = facts.server
    usable = [gpu for gpu in facts.gpus or () if _is_usable(gpu)]
    if server is None or server.remote or not usable or server.reachable is False:
        return
    seen = _unused(facts, server)
    if seen is None:
        return
    gpu = usable[0]
    there = evidence(facts, "gpus", f"{gpu.name or gpu.vendor}, {render_bytes(gpu.vram_bytes)}")
    hidden = next((name for name in _HIDING if (server.environment or {}).get(name) in ("", "-1")), None)
    if hidden is not None:
        title = f"{hidden} hides the GPU from the server, which works on the processor"
        shown = evidence(facts, "server.environment", f"{hidden}={(server.environment or {})[hidden]}")
        yield Finding(_NAME, "note", title, (seen, shown), unset_variable(server, hidden), _WHY)
        return
    title = f"the server works on the processor, though {gpu.name or 'a GPU'} is there"
    if server.managed == "container":
        fix = "start the container with the GPU: docker run --gpus all …"
        yield Finding(_NAME, "warning", title, (seen, there), fix, _WHY)
    elif not _was_lost(facts, server, gpu):
        yield Finding(_NAME, "warning", title, (seen, there), restart(server), _WHY, RestartMend())


def _was_lost(facts: Facts, server: ServerFacts, gpu: GpuFacts) -> bool:
    """Does `gpu-lost` tell it: was it there before the machine slept?"""
    if gpu.vendor != "nvidia" or server.activity is None or server.activity.compute != ("cpu",):
        return False
    return bool(server.activity.gpu_errors) or (facts.kernel is not None and bool(facts.kernel.resumes))


def _is_usable(gpu: GpuFacts) -> bool:
    """A discrete card of a vendor that Ollama supports by itself, with a driver that answers."""
    if gpu.integrated is not False or (gpu.vram_bytes or 0) < _LEAST_BYTES:
        return False
    return gpu.vendor == "amd" or (gpu.vendor == "nvidia" and gpu.driver_version is not None)


def _unused(facts: Facts, server: ServerFacts) -> Evidence | None:
    compute = server.activity.compute if server.activity else None
    if compute is not None:
        found = compute == ("cpu",)
        return evidence(facts, "server.activity", "inference compute: cpu only") if found else None
    models = server.loaded or ()
    if not models or any(model.gpu_bytes is None or model.gpu_bytes > 0 for model in models):
        return None
    if any("-ngl" in (model.argv or ()) for model in models):
        return None
    return evidence(facts, "server.loaded", f"{models[0].name}: 0 B on the GPU")


check = Check(_NAME, "GPU that the server does not use", "warning", True, run)
