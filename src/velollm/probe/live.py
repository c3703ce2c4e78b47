"""What is true of this machine at this moment: how busy others are, libraries, device files, environment."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from velollm.facts import LoadFacts
from velollm.probe.source import LiveSource, Source
from velollm.probe.texts import parse_float, parse_int, read_value

# The kernel's unit of all CPU times in /proc (USER_HZ, proc_stat(5)) is asked of the system; 100 is
# what every architecture has used since Linux 2.6.
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_ENVIRONMENT = re.compile(
    r"(?:OLLAMA|LLAMA|OMP|GOMP|GGML|KMP)_\w+|(?:CUDA|HIP|ROCR|GGML_VK)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|HSA_OVERRIDE_GFX_VERSION"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH", re.IGNORECASE)
_PCI_VENDORS = {"0x10de": "pci:nvidia", "0x1002": "pci:amd", "0x8086": "pci:intel"}
_LIBRARIES = ("libgomp.so.1",)


@dataclass(frozen=True)
class LoadSample:
    """CPU seconds so far: busy and in all for each hardware thread, and our own by thread (None: unknown which)."""

    busy_s: Mapping[int, float]
    total_s: Mapping[int, float]
    own_s: Mapping[int | None, float]


def sample_load(
    seconds: float = 0.5,
    *,
    source: Source | None = None,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    pid: int | None = None,
) -> LoadFacts:
    """How busy others keep this machine: two readings, ``seconds`` apart.

    The CPU time of the process ``pid`` (this one) and of all below it is left out. ``wait`` and
    ``clock`` are for tests. All values are None where the machine does not tell.
    """
    source = source or LiveSource()
    read = _proc_sample if source.read("/proc/stat") is not None else _psutil_sample
    own = pid if pid is not None else os.getpid()
    start, first = clock(), read(source, own)
    wait(seconds)
    second, end = read(source, own), clock()
    load_1m, load_15m = _read_averages(source)
    shares = busy_shares(first, second) if first is not None and second is not None else None
    if shares is None:
        return LoadFacts(load_1m=load_1m, load_15m=load_15m)
    busy, per_cpu = shares
    return LoadFacts(
        busy_cores_now=round(busy, 3),
        busy_per_cpu=tuple(round(share, 3) for share in per_cpu),
        sampled_s=round(end - start, 3),
        load_1m=load_1m,
        load_15m=load_15m,
    )


def read_load_sample(source: Source, pid: int) -> LoadSample | None:
    """CPU time so far, with that of the process ``pid`` and all below it apart; None where nothing tells."""
    read = _proc_sample if source.read("/proc/stat") is not None else _psutil_sample
    return read(source, pid)


def busy_shares(first: LoadSample, second: LoadSample) -> tuple[float, list[float]] | None:
    """Cores' worth of time that others took between two samples, and their share of each hardware thread.

    None where no time passed on the counters.
    """
    shares: list[float] = []
    busy_all, spans = 0.0, []
    for cpu in sorted(second.total_s.keys() & first.total_s.keys()):
        span = second.total_s[cpu] - first.total_s[cpu]
        busy = min(max(0.0, second.busy_s[cpu] - first.busy_s[cpu]), max(0.0, span))
        own = max(0.0, second.own_s.get(cpu, 0.0) - first.own_s.get(cpu, 0.0))
        spans.append(span)
        shares.append(max(0.0, busy - own) / span if span > 0 else 0.0)
        busy_all += busy / span if span > 0 else 0.0
    longest = max(spans, default=0.0)
    if longest <= 0:
        return None
    own_all = sum(second.own_s.values()) - sum(first.own_s.values())
    return max(0.0, busy_all - max(0.0, own_all) / longest), shares


def parse_proc_stat(text: str) -> tuple[dict[int, float], dict[int, float]]:
    """Busy and total CPU seconds of each hardware thread, of `/proc/stat`.

    Time stolen by the hypervisor for other machines counts as busy; guest time is inside user time.
    """
    busy: dict[int, float] = {}
    total: dict[int, float] = {}
    for line in text.splitlines():
        match = re.match(r"cpu(\d{1,6})((?: \d{1,19}){4,10})$", line.rstrip())
        if match is None:
            continue
        ticks = [int(word) for word in match.group(2).split()][:8]
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        cpu = int(match.group(1))
        total[cpu] = sum(ticks) / _TICKS_PER_S
        busy[cpu] = (sum(ticks) - idle) / _TICKS_PER_S
    return busy, total


def parse_task_stat(text: str) -> tuple[int, float, int] | None:
    """Parent, CPU seconds and last CPU, of a process's or thread's `stat` (proc_pid_stat(5)); None where damaged.

    The name in parentheses can hold anything, blanks and parentheses too: fields count from the last ``)``.
    """
    words = text.rpartition(")")[2].split()
    if len(words) < 37:
        return None
    parent, user, system, cpu = (parse_int(words[i]) for i in (1, 11, 12, 36))
    if parent is None or user is None or system is None or cpu is None:
        return None
    return parent, (user + system) / _TICKS_PER_S, cpu


def _proc_sample(source: Source, pid: int) -> LoadSample | None:
    # Our own processes first: what they use while being listed is then left out of "own", and counted
    # to others at worst for these few milliseconds.
    own: dict[int | None, float] = {}
    for member in _family(source, pid):
        for path in source.glob(f"/proc/{member}/task/[0-9]*/stat"):
            task = parse_task_stat(source.read(path) or "")
            if task is not None:
                own[task[2]] = own.get(task[2], 0.0) + task[1]
    busy, total = parse_proc_stat(source.read("/proc/stat") or "")
    return LoadSample(busy, total, own) if total else None


def _family(source: Source, pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for path in source.glob("/proc/[0-9]*/stat"):
        number = parse_int(path.split("/")[2])
        task = parse_task_stat(source.read(path) or "")
        if number is not None and task is not None:
            children.setdefault(task[0], []).append(number)
    family, queue = {pid}, [pid]
    while queue:
        new = [child for child in children.get(queue.pop(), []) if child not in family]
        family.update(new)
        queue.extend(new)
    return family


def _psutil_sample(_: Source, pid: int) -> LoadSample | None:
    import psutil

    times = psutil.cpu_times(percpu=True)
    total = {cpu: float(sum(t)) for cpu, t in enumerate(times)}
    busy = {cpu: total[cpu] - t.idle - getattr(t, "iowait", 0.0) for cpu, t in enumerate(times)}
    own = 0.0
    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.Error:
        members = []
    for member in members:
        try:
            used = member.cpu_times()
        except psutil.Error:
            continue
        own += used.user + used.system
    return LoadSample(busy, total, {None: own}) if total else None


def _read_averages(source: Source) -> tuple[float | None, float | None]:
    words = (source.read("/proc/loadavg") or "").split()
    if len(words) >= 3:
        return parse_float(words[0]), parse_float(words[2])
    if source.live and hasattr(os, "getloadavg"):
        try:
            one, _, fifteen = os.getloadavg()
        except OSError:
            return None, None
        return one, fifteen
    return None, None


def read_libraries(source: Source) -> dict[str, bool]:
    """Are the system libraries there that the embedded engine needs? Empty where the question has no meaning."""
    folders = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib/*-linux-*", "/usr/lib/*-linux-*")
    searched = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    found: dict[str, bool] = {}
    for name in _LIBRARIES:
        found[name] = any(source.glob(f"{folder}/{name}") for folder in (*searched, *folders)) or any(
            name in (source.run([program, "-p"]) or "") for program in ("ldconfig", "/sbin/ldconfig")
        )
    return found


def read_devices(source: Source) -> dict[str, tuple[str, ...]]:
    """GPU device files, and GPUs on the PCI bus, driver or not.

    Keys: ``dri`` (`/dev/dri/*`), ``kfd``, ``nvidia`` (`/dev/nvidia*`), and ``pci:nvidia``, ``pci:amd``,
    ``pci:intel`` with PCI addresses of display controllers (class 03) and accelerators (class 12).
    """
    devices = {
        "dri": tuple(source.glob("/dev/dri/card*") + source.glob("/dev/dri/renderD*")),
        "kfd": tuple(source.glob("/dev/kfd")),
        "nvidia": tuple(source.glob("/dev/nvidia*")),
        **dict.fromkeys(_PCI_VENDORS.values(), ()),
    }
    for path in source.glob("/sys/bus/pci/devices/*/class"):
        folder = path.rsplit("/", 1)[0]
        key = _PCI_VENDORS.get(read_value(source, f"{folder}/vendor") or "")
        if key is not None and (read_value(source, path) or "")[:4] in ("0x03", "0x12"):
            devices[key] = (*devices[key], folder.rsplit("/", 1)[1])
    return devices


def read_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of this process that steer an engine. Of names that hint at a secret the value is `(set)`."""
    env = os.environ if environ is None else environ
    return {
        name: "(set)" if value and _SECRET.search(name) else value
        for name, value in sorted(env.items())
        if _ENVIRONMENT.fullmatch(name)
    }
