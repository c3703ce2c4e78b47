from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.fields import Fields
from velollm.probe.loghost import read_log


def read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    cpu, memory = Fields(), Fields()
    read_log(text, cpu, memory)
    return cpu.values, memory.values


LOG = """time=x level=INFO source=sched.go:1 msg="system memory" total="15.5 GiB" free="9.0 GiB"
build 1 (abc) with GNU 14 for Linux x86_64
device_info:
  - CPU     : Made 6-Core Processor (15900 MiB, 15900 MiB free)
system_info: n_threads = 6 (n_threads_batch = 6) / 12 | CPU : AVX2 = 1 |
"""


def test_what_a_log_tells_of_its_machine() -> None:
    cpu, memory = read(LOG)
    assert cpu == {
        "model_name": "Made 6-Core Processor", "architecture": "x86_64", "physical_cores": 6, "logical_cores": 12
    }  # fmt: skip
    assert memory == {"total_text": "15.5 GiB", "total_mib": 15900}


def test_a_virtual_machine_has_fewer_cores_than_its_chip() -> None:
    assert "physical_cores" not in read(LOG.replace("/ 12", "/ 4"))[0]


def test_a_log_about_something_else() -> None:
    assert read("level=INFO source=types.go:1 msg=x\nbuild for Linux x86_64\n") == ({}, {})


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    read(text)
    read(LOG + text)
