"""AMD GPUs from the driver's files and from texts of its tools."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.amd import (
    is_apu,
    parse_amd_smi_json,
    parse_gtt_limit,
    parse_rocm_json,
    parse_rocm_text,
    parse_rocminfo,
    read_amdgpu,
)
from velollm.probe.gpus import probe_gpus
from velollm.probe.source import TextSource

GIB = 1024**3
CARD = "/sys/class/drm/card1/device"


def files(*, gfx_version: str | None, **extra: str) -> dict[str, str]:
    """An amdgpu device at 0000:03:00.0 with 8 GiB, and its node in the compute driver's topology."""
    found = {
        f"{CARD}/vendor": "0x1002\n",
        f"{CARD}/device": "0x744c\n",
        f"{CARD}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
        f"{CARD}/mem_info_vram_total": f"{8 * GIB}\n",
        f"{CARD}/mem_info_vram_used": f"{GIB}\n",
        f"{CARD}/mem_info_gtt_total": f"{30 * GIB}\n",
        f"{CARD}/max_link_speed": "16.0 GT/s PCIe\n",
        f"{CARD}/max_link_width": "16\n",
        f"{CARD}/current_link_speed": "2.5 GT/s PCIe\n",
        f"{CARD}/current_link_width": "16\n",
        f"{CARD}/numa_node": "-1\n",
        "/sys/class/drm/card1-DP-1/device/vendor": "0x1002\n",
        "/proc/meminfo": "MemTotal:       60000000 kB\n",
    }
    if gfx_version is not None:
        place = f"gfx_target_version {gfx_version}\nlocation_id 768\ndomain 0\n"
        found["/sys/class/kfd/kfd/topology/nodes/1/properties"] = place
    return found | {f"{CARD}/{name}": text for name, text in extra.items()}


def test_a_card_by_its_driver_alone() -> None:
    probe = probe_gpus(TextSource(files(gfx_version="110000")))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.vendor, gpu.gfx, gpu.pci, gpu.pci_device_id) == ("amd", "gfx1100", "0000:03:00.0", "744C")
    assert (gpu.vram_bytes, gpu.vram_used_bytes, gpu.vram_free_bytes) == (8 * GIB, GIB, 7 * GIB)
    assert (gpu.integrated, gpu.unified_memory, gpu.gtt_limit_bytes, gpu.numa_node) == (False, False, None, None)
    assert gpu.pcie is not None
    assert (gpu.pcie.gen, gpu.pcie.width, gpu.pcie.gen_now) == (4, 16, 1)


def test_an_apu_keeps_its_carve_out_and_its_limit_apart() -> None:
    probe = probe_gpus(TextSource(files(gfx_version="110501")))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.gfx, gpu.integrated, gpu.unified_memory) == ("gfx1151", True, True)
    assert (gpu.vram_bytes, gpu.gtt_limit_bytes, gpu.shared_pool_bytes) == (8 * GIB, 30 * GIB, 60000000 * 1024)


def test_the_metrics_tell_an_apu_where_the_compute_driver_is_missing() -> None:
    for metrics, apu in (("\x78\x00\x01\x03", False), ("\x80\x00\x02\x02", True), ("\x08\x01\x03\x00", True)):
        (reading,) = read_amdgpu(TextSource(files(gfx_version=None, gpu_metrics=metrics)))
        assert reading.facts.integrated is apu
    (reading,) = read_amdgpu(TextSource(files(gfx_version=None)))
    assert reading.facts.integrated is None


def test_rocm_json_whatever_the_spelling_of_its_keys() -> None:
    for series in ("Card series", "Card Series"):
        card = {
            series: "Some Chip [Radeon RX 1]", "Card model": "0x0c34", "Device ID": "0x738c", "PCI Bus": "0000:A3:00.0",
            "VRAM Total Memory (B)": "34342961152", "VRAM Total Used Memory (B)": "6750208",
            "VIS_VRAM Total Memory (B)": "268435456", "GTT Total Memory (B)": "135138402304",
            "(Topology) Numa Node": "1", "pcie clock level": "1 (16.0GT/s x16)",
        }  # fmt: skip
        text = "WARNING: low power\n" + json.dumps({"card1": card, "card0": card, "system": {"Driver version": "6.3"}})
        readings = parse_rocm_json(text)
        assert readings is not None
        assert [reading.index for reading in readings] == [0, 1]
        gpu = readings[1].facts
        assert gpu.name == "Some Chip [Radeon RX 1]"
        assert gpu.vram_bytes == 34342961152
        assert gpu.vram_free_bytes == 34342961152 - 6750208
        assert (gpu.gtt_limit_bytes, gpu.integrated, gpu.driver_version) == (None, False, "6.3")
        assert (gpu.pci, gpu.numa_node, gpu.pci_device_id) == ("0000:A3:00.0", 1, "738C")


def test_rocm_json_of_an_apu() -> None:
    card = {"Card Series": "AMD Radeon Graphics", "GFX Version": "gfx1103", "GTT Total Memory (B)": str(15 * GIB)}
    (reading,) = parse_rocm_json(json.dumps({"card0": card})) or ()
    assert (reading.facts.integrated, reading.facts.gtt_limit_bytes) == (True, 15 * GIB)


def test_rocm_lines() -> None:
    text = (
        "==== ROCm System Management Interface ====\nGPU[0]\t\t: VRAM Total Memory (B): 17163091968\n"
        "GPU[0]\t\t: Card Series: \t\tRadeon RX 2\nGPU[1]\t\t: VRAM Total Memory (B): 536870912\n"
    )
    readings = parse_rocm_text(text)
    assert readings is not None
    assert [(r.index, r.facts.vram_bytes, r.facts.name) for r in readings] == [
        (0, 17163091968, "Radeon RX 2"),
        (1, 536870912, None),
    ]


def test_amd_smi_with_and_without_wrapper() -> None:
    entry = {
        "gpu": 3,
        "asic": {"market_name": "AMD Card", "target_graphics_version": "gfx1201", "device_id": "0x7551"},
        "bus": {"bdf": "0000:42:00.0"},
        "vram": {"size": {"value": 32624, "unit": "MB"}},
        "driver": {"version": "6.10.5"},
    }
    for document in ([entry], {"gpu_data": [entry]}):
        (reading,) = parse_amd_smi_json(json.dumps(document)) or ()
        gpu = reading.facts
        assert (reading.index, gpu.name, gpu.gfx, gpu.integrated) == (3, "AMD Card", "gfx1201", False)
        assert (gpu.vram_bytes, gpu.pci, gpu.driver_version) == (32624 * 1024**2, "0000:42:00.0", "6.10.5")


def test_rocminfo_counts_gpu_agents_only() -> None:
    agent = "*******\nAgent {}\n*******\n  Name:          {}\n  Marketing Name:          {}\n  Device Type:      {}\n"
    text = (
        "HSA Agents\n"
        + agent.format(1, "AMD Ryzen", "AMD Ryzen", "CPU")
        + agent.format(2, "gfx1103", "Radeon 780M", "GPU")
    )
    (reading,) = parse_rocminfo(text) or ()
    assert (reading.facts.name, reading.facts.gfx, reading.facts.integrated) == ("Radeon 780M", "gfx1103", True)


def test_limits_of_the_kernel_command_line() -> None:
    line = "root=X amdgpu.gttsize=108000 amdttm.pages_limit=27648000 amdttm.page_pool_size =27648000"
    assert parse_gtt_limit(line) == 108000 * 1024**2 == 27648000 * 4096
    assert parse_gtt_limit("ttm.pages_limit=1024") == 4 * 1024**2
    assert parse_gtt_limit("amdgpu.gttsize =108000") is None
    assert parse_gtt_limit("") is None


def test_a_processor_that_names_a_gpu_is_no_proof() -> None:
    lscpu = {"lscpu": "Model name:   AMD RYZEN AI MAX w/ Radeon 8060S\n"}
    assert probe_gpus(TextSource(commands=lscpu)).gpus is None
    assert probe_gpus(TextSource({"/proc/cmdline": "amdgpu.gttsize=1024"})).gpus is None
    probe = probe_gpus(TextSource({"/proc/cmdline": "amdgpu.gttsize=1024"}, lscpu))
    assert probe.gpus is not None
    (gpu,) = probe.gpus
    assert (gpu.name, gpu.vram_bytes, gpu.integrated, gpu.gtt_limit_bytes) == (None, None, True, GIB)


def test_targets() -> None:
    assert (is_apu("gfx1036"), is_apu("gfx1100"), is_apu("gfx942"), is_apu(None)) == (True, False, None, None)


PIECES = st.sampled_from(
    ['{"card0": {', '"VRAM Total Memory (B)": "', "9" * 400, '"}', "}", "[", "]", '"asic": ', '"gpu_data": [', "{}",
     '"value": ', "GPU[0] : VRAM Total Memory (B): ", "\n", "HSA Agents", "***\nAgent 1\n", "Device Type: GPU",
     "amdgpu.gttsize=", "²"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=6), max_size=30).map("".join))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    for parse in (parse_rocm_json, parse_rocm_text, parse_amd_smi_json, parse_rocminfo, parse_gtt_limit):
        parse(text)
    read_amdgpu(TextSource(dict.fromkeys(files(gfx_version="1"), text) | {f"{CARD}/vendor": "0x1002"}))
