"""GPUs of Macs and Windows machines, of a bare PCI bus, of a log; and when "none" is an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe import nvidia
from velollm.probe.apple import parse_profiler_json, parse_profiler_text
from velollm.probe.capture import CaptureSource
from velollm.probe.gpus import probe_gpus
from velollm.probe.pci import parse_lspci
from velollm.probe.source import LiveSource, TextSource
from velollm.probe.windows_gpus import parse_video_controllers

MAC = json.dumps(
    {
        "SPDisplaysDataType": [
            {
                "_name": "kHW_AppleM9Item",
                "sppci_model": "Apple M9",
                "sppci_cores": "9",
                "spdisplays_vendor": "sppci_vendor_Apple",
                "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
                "spdisplays_ndrvs": [{"_name": "Color LCD"}],
            }
        ]
    }
)


def test_a_mac_has_one_pool_and_screens_are_no_gpus() -> None:
    commands = {"system_profiler SPDisplaysDataType -json": MAC, "sysctl hw": "hw.memsize: 25769803776\n"}
    probe = probe_gpus(TextSource(commands=commands))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.vendor, gpu.name, gpu.gpu_cores, gpu.metal) == ("apple", "Apple M9", 9, "metal3")
    assert (gpu.vram_bytes, gpu.unified_memory, gpu.shared_pool_bytes) == (None, True, 25769803776)
    assert gpu.largest_usable_bytes is None


def test_a_mac_whose_limit_was_raised() -> None:
    commands = {"system_profiler SPDisplaysDataType -json": MAC, "sysctl iogpu": "iogpu.wired_limit_mb: 20480\n"}
    probe = probe_gpus(TextSource(commands=commands))
    assert probe.gpus is not None
    assert probe.gpus[0].largest_usable_bytes == 20480 * 1024**2


def test_an_old_mac_with_a_card_and_a_part() -> None:
    entries = [
        {"sppci_model": "Intel UHD Graphics 630", "spdisplays_vendor": "Intel", "spdisplays_vram_shared": "1536 MB"},
        {"sppci_model": "AMD Radeon Pro 5300M", "spdisplays_vendor": "sppci_vendor_amd", "spdisplays_vram": "4 GB"},
    ]
    readings = parse_profiler_json(json.dumps({"SPDisplaysDataType": entries}))
    assert readings is not None
    part, card = (reading.facts for reading in readings)
    assert (part.vendor, part.vram_bytes, part.integrated) == ("intel", None, True)
    assert (card.vendor, card.vram_bytes, card.integrated) == ("amd", 4 * 1024**3, False)


def test_the_profilers_plain_text() -> None:
    text = """Graphics/Displays:

    Apple M2:

      Chipset Model: Apple M2
      Type: GPU
      Total Number of Cores: 8
      Vendor: Apple (0x106b)
      Metal Support: Metal 3
"""
    (reading,) = parse_profiler_text(text) or ()
    assert (reading.facts.name, reading.facts.gpu_cores, reading.facts.metal) == ("Apple M2", 8, "metal3")
    assert reading.facts.unified_memory is True


def test_windows_adapters() -> None:
    text = """
Name          : Microsoft Remote Display Adapter
AdapterRAM    :
DriverVersion : 10.0.1

Name          : Intel(R) Iris(R) Xe Graphics
AdapterRAM    : 1073741824
DriverVersion : 31.0.101.3616

Name          : NVIDIA GeForce RTX 4090
AdapterRAM    : 4293918720
DriverVersion : 32.0.15.6094
"""
    readings = parse_video_controllers(text)
    assert readings is not None
    part, card = (reading.facts for reading in readings)
    assert (part.name, part.integrated, part.vram_bytes) == ("Intel(R) Iris(R) Xe Graphics", True, None)
    assert part.driver_version == "31.0.101.3616"
    assert (card.vendor, card.integrated, card.vram_bytes) == ("nvidia", False, None)


def test_windows_adapters_in_other_forms() -> None:
    listed = "AdapterRAM=536870912\r\r\nName=AMD Radeon(TM) Graphics\r\r\n\r\r\nName=AMD Radeon RX 7600\r\r\n"
    part, card = parse_video_controllers(listed) or ()
    assert (part.facts.integrated, card.facts.integrated) == (True, False)
    one = {"Name": "Generic", "AdapterRAM": 1, "PNPDeviceID": "PCI\\VEN_1002&DEV_744C&SUBSYS_0"}
    (reading,) = parse_video_controllers(json.dumps(one)) or ()
    assert (reading.facts.vendor, reading.facts.pci_device_id) == ("amd", "744C")
    assert parse_video_controllers("Name : Some Processor\nNumberOfCores : 4\n") is None


def test_windows_adds_no_second_card_to_a_vendor_that_was_read() -> None:
    commands = {
        "nvidia-smi --query-gpu": "index, name, memory.total [MiB]\n0, NVIDIA A, 8192 MiB\n",
        "Get-CimInstance Win32_VideoController": "Name : NVIDIA A\nAdapterRAM : 1\n\n"
        "Name : Intel(R) UHD Graphics\nAdapterRAM : 1\n",
    }
    probe = probe_gpus(TextSource(commands=commands))
    assert probe.gpus is not None
    assert [gpu.vendor for gpu in probe.gpus] == ["nvidia", "intel"]
    assert probe.gpus[0].vram_bytes == 8192 * 1024**2


def test_lspci_names_a_card_that_has_no_driver() -> None:
    text = (
        "00:00.0 Host bridge: Intel Corporation Device 1\n"
        "00:02.0 VGA compatible controller [0300]: Intel Corporation UHD [8086:a780] (rev 04)\n"
        "01:00.0 VGA compatible controller: NVIDIA Corporation GA102 [GeForce RTX 3090] (rev a1)\n"
        "02:00.0 VGA compatible controller: ASPEED Technology, Inc. ASPEED Graphics Family\n"
    )
    readings = parse_lspci(text)
    assert readings is not None
    assert [(r.facts.vendor, r.facts.name, r.facts.pci) for r in readings] == [
        ("intel", None, "0000:00:02.0"),
        ("nvidia", "GeForce RTX 3090", "0000:01:00.0"),
    ]
    assert readings[0].facts.pci_device_id == "A780"
    assert parse_lspci("00:00.0 Host bridge: Intel Corporation Device 1\n") == ()
    assert parse_lspci("nothing") is None


def pci_tree(root: Path, *devices: tuple[str, str, str]) -> None:
    for address, kind, vendor in devices:
        folder = root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in (("class", kind), ("vendor", vendor), ("device", "0x2204"), ("numa_node", "1")):
            (folder / name).write_text(f"{text}\n", encoding="utf-8")


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "read_nvml", lambda: None)


@pytest.mark.usefixtures("no_nvml")
def test_this_machine_without_a_gpu_is_none_found(tmp_path: Path) -> None:
    pci_tree(tmp_path, ("0000:00:01.0", "0x060100", "0x8086"), ("0000:00:02.0", "0x030000", "0x1a03"))
    assert probe_gpus(LiveSource(tmp_path)).gpus == ()


@pytest.mark.usefixtures("no_nvml")
def test_this_machine_where_the_kernels_tree_cannot_be_read(tmp_path: Path) -> None:
    assert probe_gpus(LiveSource(tmp_path)).gpus is None


@pytest.mark.usefixtures("no_nvml")
def test_a_card_without_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    pci_tree(tmp_path, ("0000:01:00.0", "0x030200", "0x10de"))
    probe = probe_gpus(LiveSource(tmp_path))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.vendor, gpu.driver_version, gpu.vram_bytes, gpu.pci_device_id) == ("nvidia", None, None, "2204")
    assert gpu.numa_node == 1


def capture(*logs: str) -> CaptureSource:
    source = CaptureSource()
    source.logs.update({f"{place}.log": text for place, text in enumerate(logs)})
    return source


LOG = """\
time=T level=INFO source=types.go:1 msg="inference compute" id=0 library=ROCm compute=gfx1151 name=ROCm0 \
description="Radeon 8060S Graphics" driver=0.0 pci_id=0000:c3:00.0 type=iGPU total="113.5 GiB" available="2.0 GiB"
"""


def test_a_log_is_the_last_reader() -> None:
    probe = probe_gpus(capture(LOG))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.vendor, gpu.name, gpu.gfx, gpu.pci) == ("amd", "Radeon 8060S Graphics", "gfx1151", "0000:c3:00.0")
    assert (gpu.integrated, gpu.vram_bytes) == (True, None)


def test_logs_of_several_machines_name_no_gpu_of_this_one() -> None:
    assert probe_gpus(capture(LOG, LOG)).gpus is None


def test_the_engines_device_list_has_the_exact_sizes() -> None:
    text = (
        "device_info:\n  - CPU     : AMD Ryzen 8-Core Processor (64220 MiB, 64220 MiB free)\n"
        "  - CUDA0   : NVIDIA GeForce X (5738 MiB, 5141 MiB free)\n"
        "llama_prepare_model_devices: using device CUDA0 (NVIDIA GeForce X) (0000:2b:00.0) - 5141 MiB free\n"
    )
    probe = probe_gpus(capture(text))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.vram_bytes, gpu.vram_free_bytes) == (5738 * 1024**2, 5141 * 1024**2)
    assert (gpu.vendor, gpu.pci, gpu.unified_memory) == ("nvidia", "0000:2b:00.0", False)
    assert probe_gpus(capture(text.replace("CUDA0", "CPU"))).gpus == ()


PIECES = st.sampled_from(
    [MAC, '"SPDisplaysDataType"', "{", "}", "Chipset Model:", "Graphics/Displays:", "Vendor: Apple", "\n", "Name : ",
     "AdapterRAM=", "01:00.0 3D controller: NVIDIA Corporation [", "]", "9" * 400, " GB", LOG, "device_info:",
     "- CUDA0 : X (", " MiB, ", " MiB free)", "iogpu.wired_limit_mb: ", "hw.memsize: "]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=6), max_size=20).map("".join))
def test_no_text_makes_a_probe_raise(text: str) -> None:
    source = capture(text)
    source.commands.update({"a": text, "system_profiler SPDisplaysDataType": text, "lspci": text})
    source.files.update({"/proc/meminfo": text, "/proc/cmdline": text, "/sys/bus/pci/devices/0/class": text})
    probe_gpus(source)
