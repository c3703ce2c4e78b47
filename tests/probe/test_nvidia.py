"""Texts of NVIDIA's tools: the traps of real machines, in small texts of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import GpuProcess, MigDevice
from velollm.probe.capture import read_capture
from velollm.probe.gpus import probe_gpus
from velollm.probe.nvidia_table import parse_nvidia_table, parse_versions
from velollm.probe.nvidia_text import (
    parse_numa_status,
    parse_nvidia_apps,
    parse_nvidia_csv,
    parse_nvidia_list,
    parse_nvidia_query,
    parse_nvidia_topology,
    parse_nvml_memory,
)
from velollm.probe.nvidia_xml import parse_nvidia_xml
from velollm.probe.source import TextSource
from velollm.units import MIB

XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>555.1</driver_version><cuda_version>12.5</cuda_version><attached_gpus>2</attached_gpus>
  <gpu id="00000000:0B:00.0">
    <product_name>NVIDIA Test 40GB</product_name>
    <display_active>Disabled</display_active>
    <mig_mode><current_mig>Enabled</current_mig></mig_mode>
    <mig_devices>
      <mig_device><fb_memory_usage><total>9000 MiB</total></fb_memory_usage></mig_device>
      <mig_device><fb_memory_usage><total>19000 MiB</total></fb_memory_usage></mig_device>
    </mig_devices>
    <driver_model><current_dm>N/A</current_dm></driver_model>
    <pci><pci_device_id>20B210DE</pci_device_id><pci_bus_id>00000000:0B:00.0</pci_bus_id>
      <pci_gpu_link_info><pcie_gen><max_link_gen>4</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
      <link_widths><max_link_width>16x</max_link_width><current_link_width>8x</current_link_width></link_widths>
      </pci_gpu_link_info></pci>
    <fb_memory_usage><total>40960 MiB</total><used>50 MiB</used><free>40000 MiB</free></fb_memory_usage>
    <cc_protected_memory_usage><total>0 MiB</total></cc_protected_memory_usage>
    <gpu_power_readings><current_power_limit>300.00 W</current_power_limit></gpu_power_readings>
    <module_power_readings><current_power_limit>N/A</current_power_limit></module_power_readings>
    <processes><process_info><pid>77</pid><process_name>/usr/bin/python3</process_name>
      <used_memory>1234 MiB</used_memory></process_info></processes>
  </gpu>
</nvidia_smi_log>
"""

QUERY = """
==============NVSMI LOG==============

Driver Version                        : 610.10 [Deprecated; use KMD Version]
KMD Version                           : 610.10
CUDA UMD Version                      : 13.3

Attached GPUs                         : 1
GPU 00000000:0C:00.0
    Product Name                      : NVIDIA GeForce Long Name SUPER
    Display Active                    : Enabled
    MIG Mode
        Current                       : N/A
    Driver Model
        Current                       : WDDM
        Pending                       : TCC
    PCI
        Device Id                     : 0x1E8110DE
        GPU Link Info
            PCIe Generation
                Max                   : 3
                Current               : 1
            Link Width
                Max                   : 16x
                Current               : 16x
    FB Memory Usage
        Total                         : 8192 MiB
        Reserved                      : 205 MiB
        Used                          : 797 MiB
        Free                          : 7191 MiB
    BAR1 Memory Usage
        Total                         : 256 MiB
    GPU Power Readings
        GPU Ceiling Power Limit
            Current Power Limit       : 250.00 W
        Max Power Limit               : 350.00 W
    Processes
        GPU instance ID               : N/A
        Process ID                    : 2140
            Type                      : C+G
            Name                      : C:\\Windows\\dwm.exe
            Used GPU Memory           : Not available in WDDM driver model
        Process ID                    : 99
            Name                      : ollama.exe
            Used GPU Memory           : 100 MiB
"""

TABLE = """\
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 610.10                 KMD Version: 610.10        CUDA UMD Version: 13.3    |
+-----------------------------------------+------------------------+--------------------+
| GPU  Name                  Driver-Model | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|=========================================+========================+======================|
|   0  NVIDIA GeForce RTX 2080 ...  WDDM  |   00000000:0C:00.0  On |                  N/A |
| 38%   39C    P8             37W /  250W |     797MiB /   8192MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA Slice 80GB              On  |   00000000:0D:00.0 Off |                   On |
| N/A   42C    P0             98W /  700W |      59MiB /  81559MiB |     N/A      Default |
|                                         |                        |              Enabled |
+-----------------------------------------+------------------------+----------------------+
| MIG devices:                                                                            |
|  1    2   0   0  |              26MiB / 40448MiB    | 60      0 |  3   0    3    0    3 |
|                  |               0MiB / 24739MiB    |           |                       |
+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|    0   N/A  N/A            2140    C+G   C:\\Program Files\\a b.exe          N/A      |
|    1     2    0            3000      C   python                            500MiB |
+-----------------------------------------------------------------------------------------+
"""


def test_xml_reads_the_card_and_not_its_first_slice() -> None:
    found = parse_nvidia_xml(XML)
    assert found is not None
    assert found.attached == 2
    gpu = found.readings[0].facts
    assert gpu.vram_bytes == 40960 * MIB
    assert gpu.mig_devices == (MigDevice(vram_bytes=9000 * MIB), MigDevice(vram_bytes=19000 * MIB))
    assert (gpu.pci, gpu.pci_device_id) == ("0000:0B:00.0", "20B2")
    assert gpu.pcie is not None
    assert (gpu.pcie.gen, gpu.pcie.width, gpu.pcie.gen_now, gpu.pcie.width_now) == (4, 16, 1, 8)
    assert gpu.power_limit_watts == 300.0
    assert gpu.display_active is False
    assert gpu.driver_model is None
    assert gpu.processes == (GpuProcess(pid=77, name="/usr/bin/python3", vram_bytes=1234 * MIB),)


def test_the_largest_slice_is_what_one_process_can_use() -> None:
    probe = probe_gpus(TextSource(commands={"nvidia-smi -q -x": XML}))
    assert probe.gpus is not None
    assert probe.gpus[0].largest_usable_bytes == 19000 * MIB
    assert probe.attached == 2


def test_mig_mode_without_slices_leaves_nothing_to_use() -> None:
    start, end = XML.index("<mig_devices>"), XML.index("</mig_devices>")
    empty = XML[:start] + "<mig_devices>None" + XML[end:]
    probe = probe_gpus(TextSource(commands={"nvidia-smi -q -x": empty}))
    assert probe.gpus is not None
    assert probe.gpus[0].mig_devices == ()
    assert probe.gpus[0].largest_usable_bytes == 0


def test_a_cut_off_xml_gives_the_whole_gpus_only() -> None:
    second = XML[XML.index("<gpu id") : XML.index("</nvidia_smi_log>")].replace("0B:00.0", "0E:00.0")
    text = XML.replace("</nvidia_smi_log>", second)
    found = parse_nvidia_xml(text[: text.rindex("<fb_memory_usage>")])
    assert found is not None
    assert [reading.facts.pci for reading in found.readings] == ["0000:0B:00.0"]


def test_xml_with_entities_is_refused() -> None:
    bomb = '<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><nvidia_smi_log><gpu>&b;</gpu></nvidia_smi_log>'
    assert parse_nvidia_xml(bomb) is None
    assert parse_nvidia_xml("<nvidia_smi_log>&nothing;</nvidia_smi_log>") is None


def test_query_text_of_a_windows_machine() -> None:
    found = parse_nvidia_query(QUERY)
    assert found is not None
    gpu = found.readings[0].facts
    assert (gpu.driver_version, gpu.cuda_version, gpu.driver_model) == ("610.10", "13.3", "WDDM")
    assert (gpu.vram_bytes, gpu.vram_used_bytes, gpu.vram_free_bytes) == (8192 * MIB, 797 * MIB, 7191 * MIB)
    assert gpu.mig is None
    assert gpu.power_limit_watts == 250.0
    assert gpu.display_active is True
    assert gpu.pci_device_id == "1E81"
    assert gpu.processes == (
        GpuProcess(pid=2140, name="C:\\Windows\\dwm.exe", vram_bytes=None),
        GpuProcess(pid=99, name="ollama.exe", vram_bytes=100 * MIB),
    )


def test_table_drops_a_shortened_name_and_reads_slices_apart() -> None:
    found = parse_nvidia_table(TABLE)
    assert found is not None
    screen, sliced = (reading.facts for reading in found.readings)
    assert screen.name is None
    assert (screen.driver_model, screen.display_active, screen.mig) == ("WDDM", True, None)
    assert screen.driver_version == "610.10"
    assert sliced.name == "NVIDIA Slice 80GB"
    assert (sliced.mig, sliced.mig_devices) == (True, (MigDevice(vram_bytes=40448 * MIB),))
    assert sliced.vram_bytes == 81559 * MIB
    assert sliced.power_limit_watts == 700.0
    assert screen.processes == (GpuProcess(pid=2140, name="C:\\Program Files\\a b.exe"),)
    assert sliced.processes == (GpuProcess(pid=3000, name="python", vram_bytes=500 * MIB),)


def test_the_table_of_a_gpu_without_memory_of_its_own() -> None:
    text = """
| NVIDIA-SMI 540.4.0                Driver Version: 540.4.0      CUDA Version: 12.6     |
| GPU  Name                 Persistence-M | Bus-Id        Disp.A | Volatile Uncorr. ECC |
|   0  Orin (nvgpu)                  N/A  | N/A              N/A |                  N/A |
| N/A   N/A  N/A               N/A /  N/A | Not Supported        |     N/A          N/A |
"""
    source = TextSource({"/proc/meminfo": "MemTotal:        8000000 kB\n"}, {"nvidia-smi": text})
    probe = probe_gpus(source)
    assert probe.gpus is not None
    gpu = probe.gpus[0]
    assert (gpu.integrated, gpu.unified_memory, gpu.vram_bytes) == (True, True, None)
    assert gpu.shared_pool_bytes == 8000000 * 1024
    assert probe.sources["gpus.0.shared_pool_bytes"] == "main memory"


def test_csv_keeps_units_and_missing_cells_apart() -> None:
    text = (
        "index, name, memory.total [MiB], memory.used [MiB], memory.free [MiB], compute_cap, mig.mode.current\n"
        "0, NVIDIA A, 24576 MiB, 963 MiB, [N/A], 8.6, Disabled\n"
        "1, NVIDIA B, [N/A], [N/A], [N/A], [N/A], [N/A]\n"
        "2, NVIDIA C, [Unknown Error], 0, 0, 9.0, Enabled\n"
    )
    found = parse_nvidia_csv(text)
    assert found is not None
    one, shared, broken = (reading.facts for reading in found.readings)
    assert (one.vram_bytes, one.vram_used_bytes, one.vram_free_bytes) == (24576 * MIB, 963 * MIB, None)
    assert (one.compute_capability, one.mig) == ("8.6", False)
    assert (shared.vram_bytes, shared.unified_memory) == (None, True)
    assert (broken.vram_bytes, broken.unified_memory, broken.mig) == (None, None, True)


def test_csv_without_header_takes_its_columns_from_the_command() -> None:
    command = "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits"
    probe = probe_gpus(TextSource(commands={command: "NVIDIA RTX 1, 12288, 550.1\n"}))
    assert probe.gpus is not None
    assert (probe.gpus[0].vram_bytes, probe.gpus[0].driver_version) == (12288 * MIB, "550.1")
    assert parse_nvidia_csv("NVIDIA RTX 1, 12288\n") is None


def test_csv_without_header_beside_a_note_of_its_command(tmp_path: Path) -> None:
    command = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader\n"
    (tmp_path / "nvidia-smi_--query-gpu.command.txt").write_text(command, encoding="utf-8")
    (tmp_path / "nvidia-smi_--query-gpu.csv").write_text("NVIDIA RTX 1, 12288 MiB\n", encoding="utf-8")
    probe = probe_gpus(read_capture(tmp_path))
    assert probe.gpus is not None
    assert (probe.gpus[0].name, probe.gpus[0].vram_bytes) == ("NVIDIA RTX 1", 12288 * MIB)


def test_readers_are_laid_over_each_other_and_not_added() -> None:
    listed = "GPU 0: NVIDIA Test 40GB (UUID: GPU-XXXX-XX)\n  MIG 1g.9gb     Device  0: (UUID: MIG-X)\n"
    listed += "  MIG 2g.19gb    Device  1: (UUID: MIG-Y)\nGPU 1: NVIDIA Other (UUID: GPU-XXXX-XX)\n"
    table = "index, name, pci.bus_id, compute_cap\n0, wrong name, 00000000:0b:00.0, 8.0\n"
    commands = {"nvidia-smi -L": listed, "nvidia-smi --query-gpu": table, "nvidia-smi -q -x": XML}
    probe = probe_gpus(TextSource(commands=commands))
    assert probe.gpus is not None
    assert [gpu.name for gpu in probe.gpus] == ["NVIDIA Test 40GB", "NVIDIA Other"]
    gpu = probe.gpus[0]
    assert gpu.compute_capability == "8.0"
    assert gpu.mig_devices == (
        MigDevice(profile="1g.9gb", vram_bytes=9000 * MIB),
        MigDevice(profile="2g.19gb", vram_bytes=19000 * MIB),
    )
    assert probe.sources["gpus.0.vram_bytes"] == "nvidia-smi -q -x"
    assert probe.sources["gpus.0.compute_capability"] == "nvidia-smi --query-gpu"


@pytest.mark.parametrize(
    "text",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "Failed to initialize NVML: Driver/library version mismatch",
        "bash: nvidia-smi: command not found",
        "",
    ],
)
def test_a_tool_that_failed_says_nothing_about_gpus(text: str) -> None:
    assert probe_gpus(TextSource(commands={"nvidia-smi": text})).gpus is None


def test_a_tool_that_looked_and_found_none() -> None:
    probe = probe_gpus(TextSource(commands={"nvidia-smi": "No devices were found\n"}))
    assert (probe.gpus, probe.attached) == ((), 0)


def test_versions_skip_the_deprecated_lines() -> None:
    text = 'DRIVER version : Deprecated, see "KMD version" instead\nKMD version    : 610.62\nCUDA UMD version : 13.3\n'
    assert parse_versions(text) == ("610.62", "13.3")
    assert parse_versions("DRIVER version      : 590.48.01\nCUDA Version        : 13.1") == ("590.48.01", "13.1")


def test_processes_of_two_gpus_go_to_their_own() -> None:
    gpus = "index, name, pci.bus_id\n0, A, 00000000:01:00.0\n1, B, 00000000:02:00.0\n"
    apps = (
        "gpu_bus_id, pid, process_name, used_gpu_memory [MiB]\n"
        "00000000:02:00.0, 10, python, 700 MiB\n00000000:01:00.0, 11, ollama, [N/A]\n"
    )
    commands = {"nvidia-smi --query-gpu": gpus, "nvidia-smi --query-compute-apps": apps}
    probe = probe_gpus(TextSource(commands=commands))
    assert probe.gpus is not None
    assert probe.gpus[0].processes == (GpuProcess(pid=11, name="ollama"),)
    assert probe.gpus[1].processes == (GpuProcess(pid=10, name="python", vram_bytes=700 * MIB),)
    assert parse_nvidia_apps("index, name\n") is None


def test_topology_gives_cpus_and_node() -> None:
    text = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \tSYS\t0-19\t0\t\tN/A\n"
    text += "GPU1\tSYS\t X \t\t\t\tN/A\n"
    found = parse_nvidia_topology(text)
    assert found is not None
    assert [(r.facts.cpu_affinity, r.facts.numa_node) for r in found.readings] == [("0-19", 0), (None, None)]


def test_memory_that_is_a_numa_node() -> None:
    assert parse_numa_status("Node:      254\nStatus:    online\nSize:      3f0000000\n") == (254, 0x3F0000000)
    assert parse_numa_status("Node:      -1\nSize:      0\n") == (None, None)
    source = TextSource({"/proc/driver/nvidia/gpus/0004:06:00.0/numa_status": "Node: 254\nSize: 3f0000000"})
    probe = probe_gpus(source)
    assert probe.gpus is not None
    gpu = probe.gpus[0]
    assert (gpu.name, gpu.vram_bytes, gpu.numa_node, gpu.unified_memory) == (None, 0x3F0000000, 254, False)


def test_the_kernels_list_adds_no_card_to_what_the_tool_shows() -> None:
    files = {f"/proc/driver/nvidia/gpus/0000:0{n}:00.0/information": "Model: \t NVIDIA B\n" for n in (1, 2)}
    files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.48.01  Mon\n"
    tool = "index, name, pci.bus_id\n0, NVIDIA A, 00000000:02:00.0\n"
    probe = probe_gpus(TextSource(files, {"nvidia-smi --query-gpu": tool}))
    assert probe.gpus is not None
    assert [(gpu.name, gpu.driver_version) for gpu in probe.gpus] == [("NVIDIA A", "590.48.01")]
    alone = probe_gpus(TextSource(files)).gpus
    assert alone is not None
    assert [gpu.pci for gpu in alone] == ["0000:01:00.0", "0000:02:00.0"]


def test_an_answer_of_nvml_written_down() -> None:
    refused = parse_nvml_memory("nvmlDeviceGetMemoryInfo: NVML_ERROR_NOT_SUPPORTED")
    assert refused is not None
    assert refused.unified_memory is True
    sizes = parse_nvml_memory("total: 25769803776\nfree = 20000000000")
    assert sizes is not None
    assert (sizes.vram_bytes, sizes.vram_free_bytes) == (25769803776, 20000000000)
    assert parse_nvml_memory("nothing here") is None


def test_a_jetson_by_its_device_tree_alone() -> None:
    source = TextSource({"/proc/device-tree/compatible": "nvidia,p3768\x00nvidia,tegra234\x00"})
    probe = probe_gpus(source)
    assert probe.gpus is not None
    gpu = probe.gpus[0]
    assert (gpu.vendor, gpu.integrated, gpu.unified_memory, gpu.compute_capability) == ("nvidia", True, True, "8.7")


def test_a_list_of_names_is_told_from_other_text() -> None:
    assert parse_nvidia_list("Using GPU 0: fast\n") is None


PIECES = st.sampled_from(
    ["<nvidia_smi_log>", "<gpu>", "</gpu>", "<total>", "9" * 400, " MiB", "NVSMI LOG", "GPU 0000:", " : ", "\n", "    ",
     "FB Memory Usage", "Total", "NVIDIA-SMI", "Bus-Id", "|   0  X  On  |", "MiB /", "|", "GPU 0: A (UUID: GPU-1-2)",
     "  MIG 1g Device 0:", "index, name, memory.total, pid", ",", "[N/A]", "CPU Affinity\t", "GPU0\t", "Size: ", "²"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=8), max_size=40).map("".join))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    for parse in (
        parse_nvidia_xml, parse_nvidia_query, parse_nvidia_list, parse_nvidia_csv, parse_nvidia_apps,
        parse_nvidia_topology, parse_numa_status, parse_nvml_memory, parse_nvidia_table, parse_versions,
    ):  # fmt: skip
        parse(text)
    probe_gpus(TextSource({"/proc/driver/nvidia/gpus/0/numa_status": text}, {"nvidia-smi": text, "x": text}))
