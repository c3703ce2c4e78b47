"""Mounts and disks behind a directory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.source import TextSource
from velollm.probe.storage import find_mount, parse_mounts, read_storage

MOUNTS = """\
overlay / overlay rw,relatime 0 0
/dev/nvme0n1p2 /home ext4 rw 0 0
/dev/sdb1 /data xfs rw 0 0
/dev/mapper/vg-models /srv/models btrfs rw 0 0
nas:/export/llm /nas\\040models nfs4 rw,vers=4.2 0 0
C:\\134 /mnt/c 9p rw 0 0
me@host:/x /ssh fuse.sshfs rw 0 0
"""
FILES = {
    "/proc/mounts": MOUNTS,
    "/sys/block/nvme0n1/nvme0n1p2/partition": "2\n",
    "/sys/block/nvme0n1/queue/rotational": "0\n",
    "/sys/block/sdb/sdb1/partition": "1\n",
    "/sys/block/sdb/queue/rotational": "1\n",
    "/sys/block/dm-3/dm/name": "vg-models\n",
    "/sys/block/dm-3/slaves/sdb1/dev": "8:17\n",
}


@pytest.mark.parametrize(
    ("path", "kind", "network", "rotational"),
    [
        ("/home/me/.ollama/models", "ext4", False, False),
        ("/data/models", "xfs", False, True),
        ("/srv/models", "btrfs", False, True),
        ("/nas models/ollama", "nfs4", True, None),
        ("/mnt/c/models", "9p", True, None),
        ("/ssh/models", "fuse.sshfs", True, None),
        ("/datafile", "overlay", False, None),
    ],
)
def test_where_a_directory_lies(path: str, kind: str, network: bool, rotational: bool | None) -> None:
    found = read_storage(TextSource(FILES), path)
    assert found is not None
    assert (found.filesystem, found.network, found.rotational) == (kind, network, rotational)


def test_a_mac() -> None:
    text = "/dev/disk3s5 on /System/Volumes/Data (apfs, local)\n//me@nas/llm on /Volumes/llm (smbfs, nodev)\n"
    found = read_storage(TextSource(commands={"mount": text}), "/Volumes/llm/models", "macos")
    assert found is not None
    assert (found.filesystem, found.network) == ("smbfs", True)


def test_a_share_of_windows_and_what_is_unknown() -> None:
    share = read_storage(TextSource(), "\\\\nas\\models", "windows")
    assert share is not None
    assert share.network is True
    assert read_storage(TextSource(), "C:\\models", "windows") is None
    assert read_storage(TextSource(), "/models") is None


def test_the_last_of_equal_mounts_hides_the_earlier() -> None:
    mounts = [("/data", "/dev/a", "ext4"), ("/data", "/dev/b", "xfs")]
    assert find_mount(mounts, "/data/x") == mounts[1]
    assert find_mount(mounts, "/elsewhere") is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for mount, device, kind in parse_mounts(text):
        assert mount
        assert device
        assert kind
