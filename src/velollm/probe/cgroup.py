"""Control groups, version 1 and 2: CPU set, CPU quota and memory limit of this process.

A limit of a group holds for all groups below it, so the smallest on the way up to the mount counts
(kernel documentation: admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from velollm.probe.fields import Fields
from velollm.probe.source import Source
from velollm.probe.texts import parse_int, read_value

_ROOT = "/sys/fs/cgroup"
# Version 1 writes "no limit" as the largest page count in bytes, about 2**63; nothing has 2**60 bytes.
_NO_LIMIT = 1 << 60
_DEFAULT_PERIOD_US = 100_000
_DEPTH_LIMIT = 64
_V1_FILES = {"cpu": "cpu.cfs_quota_us", "cpuset": "cpuset.cpus", "memory": "memory.limit_in_bytes"}


@dataclass(frozen=True)
class Groups:
    """Where this process's groups are: mount point and path below it, by controller of version 1, and of version 2."""

    v1: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    v2: tuple[str, str] | None = None
    place: str = ""
    mount_seen: bool = False


@dataclass(frozen=True)
class Limit:
    """A memory limit in bytes, what of it is in use, and the file that sets it."""

    limit_bytes: int
    used_bytes: int | None
    place: str


@dataclass(frozen=True)
class CgroupReading:
    """Values for the section ``cgroup`` of the facts and the memory limit with its use."""

    fields: Fields
    memory: Limit | None


def read_cgroup(source: Source) -> CgroupReading | None:
    """The control group of this process; None where nothing tells of one."""
    groups = find_groups(source)
    if groups is None:
        return None
    fields = Fields()
    fields.put("version", 1 if groups.v1 else 2, groups.place)
    if groups.v2 is not None and not groups.v1 and groups.mount_seen:
        fields.put("mount", groups.v2[0], groups.place)
    _put_cpuset(source, groups, fields)
    _put_quota(source, groups, fields)
    limit = _read_memory_limit(source, groups)
    if limit is not None:
        fields.put("memory_limit_bytes", limit.limit_bytes, limit.place)
    return CgroupReading(fields, limit)


def find_groups(source: Source) -> Groups | None:
    """This process's groups, of `/proc/self/cgroup`, `/proc/mounts` and `/proc/self/cpuset`.

    Where a machine has both versions, the CPU controllers decide which one counts.
    """
    memberships = parse_memberships(source.read("/proc/self/cgroup") or "")
    mounts = source.read("/proc/mounts") or source.read("/proc/self/mounts") or ""
    mounted_v2, mounted_v1 = parse_mounts(mounts)
    cpuset_path = read_value(source, "/proc/self/cpuset")
    v1 = {
        name: (mounted_v1.get(name) or _find_v1_mount(source, name) or f"{_ROOT}/{name}", memberships[name])
        for name in _V1_FILES
        if name in memberships
    }
    if v1:
        return Groups(v1, None, "/proc/self/cgroup")
    if not memberships and (v1 := _v1_without_memberships(source, mounted_v1, cpuset_path)):
        return Groups(v1, None, _ROOT)
    path = memberships.get("") or cpuset_path
    seen = mounted_v2 is not None
    if "" not in memberships and not seen and not _has_files(source):
        # `/proc/self/cpuset` alone is the same in both versions.
        return None
    place = "/proc/mounts" if seen else "/proc/self/cgroup" if "" in memberships else _ROOT
    return Groups({}, (mounted_v2 or _ROOT, path or "/"), place, seen)


def parse_memberships(text: str) -> dict[str, str]:
    """Path of the group by controller, of `/proc/self/cgroup`; the name of version 2 is the empty text."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[0].strip().isdigit() and parts[2].startswith("/"):
            for name in parts[1].split(","):
                paths.setdefault(name, parts[2].strip())
    return paths


def parse_mounts(text: str) -> tuple[str | None, dict[str, str]]:
    """Mount point of version 2 and those of version 1 by controller, of `/proc/mounts`."""
    v2: str | None = None
    v1: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 4 or not parts[1].startswith("/"):
            continue
        if parts[2] == "cgroup2":
            v2 = v2 or parts[1]
        elif parts[2] == "cgroup":
            for option in parts[3].split(","):
                v1.setdefault(option, parts[1])
    return v2, v1


def _v1_without_memberships(
    source: Source, mounted: Mapping[str, str], cpuset_path: str | None
) -> dict[str, tuple[str, str]]:
    if cpuset_path and "cpuset" in mounted:
        return {"cpuset": (mounted["cpuset"], cpuset_path)}
    found = ((name, _find_v1_mount(source, name)) for name in _V1_FILES)
    return {
        name: (mount, (cpuset_path or "/") if name == "cpuset" else "/") for name, mount in found if mount is not None
    }


def _find_v1_mount(source: Source, name: str) -> str | None:
    mounts = (f"{_ROOT}/{name}", f"{_ROOT}/cpu,cpuacct", f"{_ROOT}/cpuacct,cpu")
    return next((mount for mount in mounts if source.read(f"{mount}/{_V1_FILES[name]}") is not None), None)


def _has_files(source: Source) -> bool:
    return any(source.read(f"{_ROOT}/{name}") is not None for name in ("cpu.max", "memory.max", "cgroup.controllers"))


def _levels(group: tuple[str, str]) -> Iterator[str]:
    """Directories from the group itself up to its mount.

    Inside a container the path may be one of the host that is not mounted; then only the mount answers.
    """
    mount, path = group
    parts = [part for part in path.split("/") if part and part != ".."][:_DEPTH_LIMIT]
    for depth in range(len(parts), -1, -1):
        yield "/".join([mount.rstrip("/"), *parts[:depth]])


def _group(groups: Groups, controller: str) -> tuple[str, str] | None:
    return groups.v1.get(controller) if groups.v1 else groups.v2


def _put_cpuset(source: Source, groups: Groups, fields: Fields) -> None:
    group = _group(groups, "cpuset")
    if group is None:
        return
    names = {
        "cpuset": ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"),
        "mems": ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems"),
    }
    for field_name, files in names.items():
        for level in _levels(group):
            # A group's CPUs are always among its parent's: the first answer on the way up is the smallest.
            found = ((f"{level}/{file}", read_value(source, f"{level}/{file}")) for file in files)
            place, value = next(((p, v) for p, v in found if v), ("", None))
            if value is not None and re.fullmatch(r"[0-9,\- ]{1,65536}", value):
                fields.put(field_name, value, place)
                break


def _put_quota(source: Source, groups: Groups, fields: Fields) -> None:
    group = _group(groups, "cpu")
    if group is None:
        return
    quotas: list[tuple[float, str]] = []
    for level in _levels(group):
        if groups.v1:
            place = f"{level}/cpu.cfs_quota_us"
            quota = _ratio(source.read(place), source.read(f"{level}/cpu.cfs_period_us"))
        else:
            place = f"{level}/cpu.max"
            quota = parse_cpu_max(source.read(place) or "")
        if quota is not None:
            quotas.append((quota, place))
    if quotas:
        fields.put("cpu_quota", *min(quotas))


def parse_cpu_max(text: str) -> float | None:
    """CPUs that `cpu.max` allows (``150000 100000`` is 1.5); None where it is ``max`` or damaged."""
    parts = text.split()
    if not parts or len(parts) > 2:
        return None
    return _ratio(parts[0], parts[1] if len(parts) == 2 else None)


def _ratio(quota: str | None, period: str | None) -> float | None:
    allowed, per = parse_int(quota), parse_int(period) if period is not None else _DEFAULT_PERIOD_US
    if allowed is None or per is None or allowed <= 0 or per <= 0:
        return None
    return allowed / per


def _read_memory_limit(source: Source, groups: Groups) -> Limit | None:
    group = _group(groups, "memory")
    if group is None:
        return None
    limit_file, used_file, cache_name = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if groups.v1
        else ("memory.max", "memory.current", "inactive_file")
    )
    limits: list[tuple[int, str]] = []
    for level in _levels(group):
        value = parse_int(source.read(f"{level}/{limit_file}"))
        if value is not None and 0 <= value < _NO_LIMIT:
            limits.append((value, level))
    if not limits:
        return None
    smallest, level = min(limits, key=lambda pair: pair[0])
    used = parse_int(source.read(f"{level}/{used_file}"))
    if used is not None:
        # File pages that nobody touched of late are given back before anything is refused.
        used = max(0, used - (_stat(source.read(f"{level}/memory.stat") or "", cache_name) or 0))
    return Limit(smallest, used, f"{level}/{limit_file}")


def _stat(text: str, name: str) -> int | None:
    return next((parse_int(line[len(name) + 1 :]) for line in text.splitlines() if line.startswith(f"{name} ")), None)
