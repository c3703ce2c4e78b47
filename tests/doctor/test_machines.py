"""What the doctor says of captured machines: nothing worse than a note, except where something is wrong."""

from __future__ import annotations

import pytest

from tests.shared import find_shared, shared_dir
from velollm.doctor.diagnose import diagnose
from velollm.probe.machine import probe_capture

WRONG = {
    "13-gtx-1660-ti-nameless-old-driver": {"gpu-driver"},
    "17-thinkpad-on-battery": {"battery", "thermal-throttling"},
    "25-ollama-llama-server-rtx-2060": {"gpu-offload"},
    "27-container-one-cpu-512-mb": {"container-limits"},
}
_FOLDER = find_shared("machines")
NAMES = sorted(path.name for path in _FOLDER.iterdir() if path.is_dir()) if _FOLDER else []


def test_the_machines_with_something_wrong_are_there() -> None:
    assert set(WRONG) <= {path.name for path in shared_dir("machines").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_wrong_is_more_than_a_note(name: str) -> None:
    findings = diagnose(probe_capture(shared_dir("machines") / name))
    grave = {finding.check for finding in findings if finding.severity != "note"}
    assert grave == WRONG.get(name, set())
    assert all(finding.evidence and finding.fix for finding in findings)


def test_a_narrow_cpuset_is_a_note() -> None:
    findings = diagnose(probe_capture(shared_dir("machines") / "04-slurm-job-cpuset-cgroup2"))
    note = next(finding for finding in findings if finding.check == "cpu-affinity")
    assert "6 of 32" in note.title
    assert note.evidence[0].value == "0-5"
