from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.fields import Fields
from velollm.probe.host import probe_host
from velollm.probe.source import TextSource
from velollm.probe.windows import read_psutil, read_psutil_power

CPU = "Name : Made CPU\nNumberOfCores : 8\nNumberOfLogicalProcessors : 16\n"


def test_processor_computer_and_system() -> None:
    values = probe_host(
        TextSource(
            commands={
                "Get-CimInstance Win32_Processor": CPU + "\r\n\r\n" + CPU,
                "Get-CimInstance Win32_ComputerSystem": (
                    "Manufacturer : Maker\nModel : Box 5\nTotalPhysicalMemory : 16870006784\n"
                ),
                "Get-CimInstance Win32_OperatingSystem": "OSArchitecture : 64-bit\nFreePhysicalMemory : 1000\n",
            }
        )
    ).values
    cpu, memory = values["cpu"], values["memory"]
    assert (cpu.sockets, cpu.physical_cores, cpu.logical_cores, cpu.usable_cores) == (2, 16, 32, 32)
    assert (cpu.model_name, cpu.architecture, cpu.board) == ("Made CPU", "x86_64", "Maker Box 5")
    assert cpu.performance_cores is None, "CIM does not tell kinds of cores apart"
    assert (memory.total_bytes, memory.available_bytes) == (16870006784, 1024000)


def test_windows_on_arm() -> None:
    commands = {
        "Get-CimInstance Win32_Processor": CPU,
        "Get-CimInstance Win32_OperatingSystem": "OSArchitecture : ARM 64-bit Processor\n",
    }
    assert probe_host(TextSource(commands=commands)).values["cpu"].architecture == "aarch64"


def test_psutil_knows_the_machine_it_runs_on() -> None:
    cpu, memory, power = Fields(), Fields(), Fields()
    read_psutil(cpu, memory)
    read_psutil_power(power)
    assert cpu.get("logical_cores") >= 1
    assert 0 < memory.get("available_bytes") <= memory.get("total_bytes")
    assert power.get("on_battery") in (True, False, None)


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    commands = {f"Get-CimInstance Win32_{n}": text for n in ("Processor", "ComputerSystem", "OperatingSystem")}
    probe_host(TextSource(commands=commands))
