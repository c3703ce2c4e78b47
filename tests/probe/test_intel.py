"""Intel GPUs: which of them is a card, and what xpu-smi leaves out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.gpus import probe_gpus
from velollm.probe.intel import is_integrated, parse_xpu_json, parse_xpu_table
from velollm.probe.source import TextSource

TABLE = """\
+-----------+----------------------------------------------+
| Device ID | Device Information                           |
+-----------+----------------------------------------------+
| 0         | Device Name: Intel(R) Arc(TM) A770 Graphics  |
|           | PCI BDF Address: 0000:03:00.0                |
|           | Function Type: physical                      |
+-----------+----------------------------------------------+
| 1         | Device Name: Intel(R) UHD Graphics 770       |
|           | PCI BDF Address: 0000:00:02.0                |
|           | Memory Physical Size: 0.00 MiB               |
|           | PCIe Generation: -1                          |
+-----------+----------------------------------------------+
"""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Intel(R) Arc(TM) A770 Graphics", False),
        ("Intel(R) Arc(TM) A350M Graphics", False),
        ("Intel(R) Arc(TM) B580 Graphics", False),
        ("Intel(R) Arc(TM) Pro B60 Graphics", False),
        ("Intel(R) Data Center GPU Flex 170", False),
        ("Intel(R) Iris(R) Xe MAX Graphics", False),
        ("Intel(R) Iris(R) Xe Graphics", True),
        ("Intel(R) UHD Graphics 770", True),
        ("Intel(R) Arc(TM) Graphics", True),
        ("Intel(R) Arc(TM) 140V GPU (16GB)", True),
        ("Intel(R) Arc(TM) B390 GPU", True),
        ("Intel Something New", None),
    ],
)
def test_cards_and_parts_by_name(name: str, part: bool | None) -> None:
    assert is_integrated(name) is part


def test_the_place_on_the_bus_decides_without_a_name() -> None:
    assert is_integrated(None, "0000:00:02.0") is True
    assert is_integrated(None, "0000:03:00.0") is False
    assert is_integrated(None, None) is None


def test_a_device_spans_rows_and_memory_is_not_guessed() -> None:
    readings = parse_xpu_table(TABLE)
    assert readings is not None
    card, part = (reading.facts for reading in readings)
    assert (card.name, card.pci, card.vram_bytes) == ("Intel(R) Arc(TM) A770 Graphics", "0000:03:00.0", None)
    assert (card.integrated, part.integrated, part.vram_bytes, part.pcie) == (False, True, None, None)


def test_details_of_one_device() -> None:
    text = (
        "| Device ID | Device Information |\n| 0         | Device Type: GPU |\n"
        "|           | Device Name: Intel Arc B580 |\n"
        "|           |                    |\n|           | PCI BDF Address: 0000:03:00.0 |\n"
        "|           | PCIe Generation: 4 |\n|           | PCIe Max Link Width: 8 |\n"
        "|           | Memory Physical Size: 12216.00 MiB |\n"
    )
    (reading,) = parse_xpu_table(text) or ()
    gpu = reading.facts
    assert (gpu.vram_bytes, gpu.integrated) == (12216 * 1024**2, False)
    assert gpu.pcie is not None
    assert (gpu.pcie.gen, gpu.pcie.width) == (4, 8)


def test_json_of_xpu_smi() -> None:
    device = {
        "device_id": 0, "device_name": "Intel(R) Arc(TM) B580 Graphics", "pci_bdf_address": "0000:03:00.0",
        "memory_physical_size_byte": "12809404416",
    }  # fmt: skip
    (reading,) = parse_xpu_json(json.dumps({"device_list": [device]})) or ()
    assert (reading.facts.vram_bytes, reading.facts.integrated) == (12809404416, False)


def test_sysfs_and_tool_are_one_gpu() -> None:
    folder = "/sys/class/drm/card0/device"
    source = TextSource(
        {
            f"{folder}/vendor": "0x8086\n",
            f"{folder}/device": "0x56a0\n",
            f"{folder}/uevent": "DRIVER=xe\nPCI_SLOT_NAME=0000:03:00.0\n",
            "/sys/class/drm/card0/lmem_total_bytes": "16225243136\n",
        },
        {"xpu-smi discovery": TABLE},
    )
    probe = probe_gpus(source)
    assert probe.gpus is not None
    assert [(gpu.name, gpu.vram_bytes, gpu.pci_device_id) for gpu in probe.gpus] == [
        ("Intel(R) Arc(TM) A770 Graphics", 16225243136, "56A0"),
        ("Intel(R) UHD Graphics 770", None, None),
    ]


PIECES = st.sampled_from(
    [
        "| 0 | Device Name: X |",
        "| | Memory Physical Size: ",
        "9" * 400,
        " MiB |",
        "\n",
        "|",
        ":",
        '"device_name"',
        "{",
        "[",
    ]
)


@given(st.lists(PIECES | st.text(max_size=6), max_size=30).map("".join))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    parse_xpu_json(text)
    parse_xpu_table(text)
