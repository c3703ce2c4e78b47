"""Accelerators: what a driver or a person calls a GPU finds its row, and only agreement is told where several fit."""

from __future__ import annotations

import re

import pytest

from tests.shared import find_shared, shared_dir
from velollm.facts import Facts, GpuFacts, MemoryFacts
from velollm.models.accelerators import (
    accelerators_named,
    fill_from_table,
    load_accelerators,
    match_accelerator,
    merge_accelerators,
)
from velollm.models.yamlfile import load_value
from velollm.probe.machine import probe_capture
from velollm.units import GIB

# The row of each GPU that a captured machine names; None where its name tells too little.
CAPTURED = {
    "02-dgx-spark-gb10-linux": "nvidia-gb10",
    "03-power9-v100-gpu-numa-nodes": None,
    "09-strix-halo-framework-desktop": None,
    "10-h100-80gb-cloud-vm": "nvidia-h100-sxm5-80-gb",
    "11-h100-mig-four-instances": "nvidia-h100-sxm5-80-gb",
    "12-windows-rtx-2080-super-driver-610": "nvidia-geforce-rtx-2080-super",
    "13-gtx-1660-ti-nameless-old-driver": None,
    "14-four-a100-first-in-mig": "nvidia-a100-sxm4-80-gb",
    "15-rx-6700-xt-rocm-smi": None,
    "16-four-mi100-rocm-smi": "amd-radeon-instinct-mi100",
    "23-macbook-air-m1-7-core-gpu": "apple-m1",
    "24-windows-i7-1260p-cim": "intel-iris-xe-graphics-g7-96eu-mobile",
    "25-ollama-llama-server-rtx-2060": "nvidia-geforce-rtx-2060",
    "28-two-rtx-3090": "nvidia-geforce-rtx-3090",
    "29-arc-a770-xpu-smi": "intel-arc-a770",
}


def _names() -> list[str]:
    folder = find_shared("machines")
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder is not None else []


def test_every_row_is_whole() -> None:
    rows = load_accelerators()
    assert len({row.id for row in rows}) == len(rows) == 216
    classes = load_value("accelerators", "flash_attention_classes")
    for row in rows:
        assert row.match
        assert all(re.compile(pattern) for pattern in row.match)
        assert row.flash_attention in classes
        assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", text) for text in row.pci_ids)
        assert row.memory_bandwidth_bytes_per_s is None or 10**10 < row.memory_bandwidth_bytes_per_s < 10**13
        assert not (row.unified and row.vram_bytes)


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip("no shared machines"))])
def test_gpus_of_the_captures_find_their_row(name: str) -> None:
    facts = probe_capture(shared_dir("machines") / name)
    total = facts.memory.total_bytes if facts.memory is not None else None
    matches = [match_accelerator(gpu, unified_bytes=total) for gpu in facts.gpus or ()]
    found = {None if match is None else match.id for match in matches}
    assert found <= {CAPTURED.get(name)}
    assert not any(" or " in (text or "") for text in found)


def test_memory_size_tells_two_cards_of_one_name_apart() -> None:
    small = match_accelerator(GpuFacts(vendor="nvidia", name="NVIDIA GeForce RTX 4060 Ti", vram_bytes=8 * GIB))
    large = match_accelerator(GpuFacts(vendor="nvidia", name="NVIDIA GeForce RTX 4060 Ti", vram_bytes=16 * GIB))
    assert small is not None
    assert large is not None
    assert (small.vram_bytes, large.vram_bytes) == (8 * GIB, 16 * GIB)
    assert match_accelerator(GpuFacts(name="NVIDIA GeForce RTX 4060 Ti", vram_bytes=3 * GIB)) is None


def test_where_several_rows_fit_only_what_they_agree_on_is_known() -> None:
    found = match_accelerator(GpuFacts(vendor="nvidia", name="NVIDIA GeForce RTX 2060"))
    assert found is not None
    assert found.name == "GeForce RTX 2060 or GeForce RTX 2060 12 GB"
    assert (found.vram_bytes, found.fp16_tflops) == (None, None)
    assert found.memory_bandwidth_bytes_per_s == 336_000_000_000
    assert merge_accelerators([]) is None


def test_gpu_cores_tell_the_bins_of_one_chip_apart() -> None:
    bins = {
        cores: match.memory_bandwidth_bytes_per_s
        for cores in (32, 40, None)
        if (match := match_accelerator(GpuFacts(vendor="apple", name="Apple M4 Max", gpu_cores=cores))) is not None
    }
    assert bins == {32: 410_000_000_000, 40: 546_000_000_000, None: None}


def test_an_nvidia_device_id_is_enough_where_the_name_is_a_placeholder() -> None:
    found = match_accelerator(GpuFacts(vendor="nvidia", name="Graphics Device", pci_device_id="2182"))
    assert found is not None
    assert found.id == "nvidia-geforce-gtx-1660-ti"
    assert match_accelerator(GpuFacts(vendor="amd", name="Navi 22", pci_device_id="73DF")) is None


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("RTX 4070", ["nvidia-geforce-rtx-4070"]),
        ("nvidia geforce rtx4070 12 GB", ["nvidia-geforce-rtx-4070"]),
        ("RTX 4070 laptop", ["nvidia-geforce-rtx-4070-mobile"]),
        ("4070 Ti SUPER", ["nvidia-geforce-rtx-4070-ti-super"]),
        ("H200", ["nvidia-h200-sxm-141-gb"]),
        ("RX7900XTX", ["amd-radeon-rx-7900-xtx"]),
        ("M2 Max", ["apple-m2-max"]),
        ("M2", ["apple-m2"]),
        ("A770", ["intel-arc-a770"]),
        ("MI300X", ["amd-radeon-instinct-mi300x"]),
        ("RTX 6000", ["nvidia-quadro-rtx-6000"]),
        ("RTX 4000", []),
        ("nothing known", []),
        ("GB", []),
    ],
)
def test_what_people_call_a_gpu(text: str, ids: list[str]) -> None:
    assert [row.id for row in accelerators_named(text)] == ids


def test_every_name_of_the_table_finds_its_own_row() -> None:
    for row in load_accelerators():
        assert row.id in {found.id for found in accelerators_named(row.name, memory_bytes=row.vram_bytes)}, row.name


def test_a_description_is_filled_and_a_driver_s_word_is_kept() -> None:
    facts = Facts(gpus=(GpuFacts(name="RTX 3090"), GpuFacts(name="RTX 3090", vram_bytes=20 * GIB)))
    first, second = fill_from_table(facts).gpus or ()
    assert (first.vendor, first.vram_bytes, first.unified_memory) == ("nvidia", 24 * GIB, False)
    assert second.vram_bytes == 20 * GIB
    assert fill_from_table(facts).sources["gpus.0.vram_bytes"] == "table of accelerators"


def test_memory_of_a_part_that_shares_it_is_main_memory() -> None:
    facts = fill_from_table(Facts(gpus=(GpuFacts(name="NVIDIA GB10", vram_bytes=128 * GIB),)))
    assert facts.gpus is not None
    assert facts.gpus[0].vram_bytes is None
    assert facts.memory == MemoryFacts(total_bytes=128 * GIB)
