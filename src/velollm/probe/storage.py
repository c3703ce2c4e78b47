"""Where a directory lies: its mount, its file system, and the disk behind it."""

from __future__ import annotations

import re

from velollm.facts import StorageFacts
from velollm.probe.source import Source
from velollm.probe.texts import read_value

_MOUNTS = "/proc/mounts"
# Kinds of file system that reach another machine, or the host of this virtual machine (proc_mounts(5), mount(8)).
_NETWORK = re.compile(
    r"nfs4?|cifs|smb\w*|afpfs|webdav|davfs2?|9p|drvfs|ceph|lustre|beegfs|gpfs|afs|ncpfs|ocfs2|gfs2"
    r"|fuse\.(?:sshfs|glusterfs|ceph|rclone|s3fs|gcsfuse|davfs2?|smbnetfs|curlftpfs|juicefs|mount-s3)"
)
_MAC_MOUNT = re.compile(r"^(.+?) on (/.*?) \((\w+)[,)]", re.MULTILINE)


def read_storage(source: Source, path: str, system: str | None = "linux") -> StorageFacts | None:
    """What is known of the place of ``path``; None where the system does not tell. Reads nothing of the path itself."""
    if path.startswith("\\\\"):
        return StorageFacts(mount=path, network=True)
    if system == "macos":
        mounts = [(m.group(2), m.group(1), m.group(3)) for m in _MAC_MOUNT.finditer(source.run(["mount"]) or "")]
    else:
        mounts = parse_mounts(source.read(_MOUNTS) or "")
    found = find_mount(mounts, path)
    if found is None:
        return None
    mount, device, kind = found
    network = bool(_NETWORK.fullmatch(kind))
    disk = None if network else device.removeprefix("/dev/") if device.startswith("/dev/") else None
    return StorageFacts(
        mount=mount,
        filesystem=kind,
        network=network,
        device=device,
        rotational=_is_rotational(source, disk) if disk else None,
    )


def parse_mounts(text: str) -> list[tuple[str, str, str]]:
    """(mount point, device, kind) of each line of `/proc/mounts`; blanks in it are written ``\\040``."""
    rows = (line.split() for line in text.splitlines())
    return [(_plain(row[1]), _plain(row[0]), row[2]) for row in rows if len(row) >= 4]


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def find_mount(mounts: list[tuple[str, str, str]], path: str) -> tuple[str, str, str] | None:
    """The mount that a path is on: the longest that it lies under, and of equals the last."""
    found = None
    for mount in mounts:
        place = mount[0].rstrip("/")
        if (path == place or path.startswith(f"{place}/")) and (found is None or len(mount[0]) >= len(found[0])):
            found = mount
    return found


def _is_rotational(source: Source, name: str) -> bool | None:
    """Does the disk of a block device turn? A partition's disk and a mapping's parts are looked up."""
    for disk in _disks(source, name):
        answer = read_value(source, f"/sys/block/{disk}/queue/rotational")
        if answer is not None:
            return answer == "1"
    return None


def _disks(source: Source, name: str) -> list[str]:
    whole = name.rpartition("/")[2]
    if name.startswith("mapper/"):
        named = source.glob("/sys/block/dm-*/dm/name")
        whole = next((path.split("/")[3] for path in named if read_value(source, path) == whole), whole)
    parents = [path.split("/")[3] for path in source.glob(f"/sys/block/*/{whole}/partition")]
    parts = [path.split("/")[5] for path in source.glob(f"/sys/block/{whole}/slaves/*/dev")]
    below = [disk for part in parts for disk in (*_parents(source, part), part)]
    return [*below, *parents, whole]


def _parents(source: Source, part: str) -> list[str]:
    return [path.split("/")[3] for path in source.glob(f"/sys/block/*/{part}/partition")]
