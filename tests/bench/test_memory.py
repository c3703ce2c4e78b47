from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.bench.simulated import SimulatedServer, World
from velollm.bench.memory import ServerProcesses, parse_vm_hwm

MIB = 1 << 20
# Holds 96 MiB for a moment, gives it back, says so and waits for a line. With an argument a child does it.
CHILD = """
import subprocess, sys
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
else:
    block = bytearray(b"x") * (96 << 20)
    del block
print("ready", flush=True)
sys.stdin.readline()
if len(sys.argv) > 1:
    child.communicate(b"\\n")
"""


def processes(*pids: int) -> ServerProcesses:
    return ServerProcesses(SimulatedServer(World(), "default", pids=pids))


@pytest.mark.parametrize("arguments", [(), (CHILD,)], ids=["itself", "its child"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps a high-water mark for others")
def test_a_peak_between_two_readings_is_seen(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        watched = processes(child.pid)
        peak = watched.read_peak_bytes()
        assert not watched.all_ended()
        child.communicate(b"\n")
    assert peak is not None
    assert 96 * MIB < peak < 300 * MIB
    assert watched.all_ended()
    assert watched.read_peak_bytes() == peak, "the last reading stays when the process is gone"


def test_processes_that_are_not_ours_to_see() -> None:
    unseen = processes()
    assert unseen.read_peak_bytes() is None
    assert not unseen.all_ended()


def test_a_server_that_was_dead_from_the_start() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert processes(child.pid).all_ended()


def test_one_living_process_is_enough() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert not processes(child.pid, os.getpid()).all_ended()


def test_parse_vm_hwm() -> None:
    assert parse_vm_hwm("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n") == 2 * MIB
    assert parse_vm_hwm("Name:\tkthreadd\n") is None
    assert parse_vm_hwm("VmHWM:\t many kB\n") is None
