"""Described machines: a few words or lines of YAML become facts, each with its place, and nonsense a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.probe.described import parse_size, parse_speed
from velollm.probe.hardware import parse_hardware, read_hardware
from velollm.probe.machine import probe_capture
from velollm.units import GIB


def gpus(facts: Facts) -> list[tuple[str | None, int | None]]:
    return [(gpu.name, None if gpu.vram_bytes is None else gpu.vram_bytes // GIB) for gpu in facts.gpus or ()]


@pytest.mark.parametrize(
    ("text", "ram_gib", "cards", "system"),
    [
        ("16 GB RAM, RTX 4070 12 GB", 16, [("RTX 4070", 12)], None),
        ("16 GB RAM\nRTX 4070 12 GB\nLinux", 16, [("RTX 4070", 12)], "linux"),
        ("# mine\n16 GB RAM # bought in 2024", 16, [], None),
        ("8 GB laptop", 8, [], None),
        ("MacBook Air M2 24GB", 24, [("Apple M2", None)], "macos"),
        ("Mac Studio M2 Ultra 192 GB", 192, [("Apple M2 Ultra", None)], "macos"),
        ("M1 16GB", 16, [("Apple M1", None)], "macos"),
        ("8 x H200, 2 TB RAM", 2048, [("H200", None)] * 8, None),
        ("64GB memory + 2x RTX 3090 24GB", 64, [("RTX 3090", 24)] * 2, None),
        ("RAM 32 GB; RX 7900 XTX x 2; Windows 11", 32, [("RX 7900 XTX", None)] * 2, "windows"),
        ("ram: 16 GB\ngpus: [RTX 4070 12 GB, RTX 3090]", 16, [("RTX 4070", 12), ("RTX 3090", None)], None),
        ("ram: 16GiB\ngpu: none", 16, [], None),
        ("ram: 64 GB\ngpus:\n- {name: Odd Card, memory: 12 GB, count: 2}", 64, [("Odd Card", 12)] * 2, None),
        ("- 32 GB RAM\n- gpu: RTX 3060 12 GB\n- linux", 32, [("RTX 3060", 12)], "linux"),
        ("machine: MacBook Pro M4 Max 128 GB", 128, [("Apple M4 Max", None)], "macos"),
        ("8 GB RAM, no GPU", 8, [], None),
        ("DGX Spark", None, [("NVIDIA GB10", None)], None),
    ],
)
def test_what_people_write(
    text: str, ram_gib: int | None, cards: list[tuple[str, int | None]], system: str | None
) -> None:
    facts = parse_hardware(text)
    assert facts.memory is not None
    assert facts.memory.total_bytes == (None if ram_gib is None else ram_gib * GIB)
    assert gpus(facts) == cards
    assert facts.os == system


def test_processor_and_speeds() -> None:
    facts = parse_hardware(
        "cpu: Ryzen 7 7840U\ncores: 8\nthreads: 16\nram: 32 GB\nbandwidth: 89.6 GB/s\navailable: 20 GB"
    )
    assert facts.cpu is not None
    assert facts.memory is not None
    assert (facts.cpu.model_name, facts.cpu.usable_physical_cores, facts.cpu.usable_cores) == ("Ryzen 7 7840U", 8, 16)
    assert facts.cpu.threads_per_core == 2
    assert (facts.memory.bandwidth_bytes_per_s, facts.memory.available_bytes) == (89_600_000_000, 20 * GIB)


def test_transfers_and_channels_make_a_bandwidth() -> None:
    facts = parse_hardware("64 GB DDR5-5600 dual channel, Ryzen 9 7950X 16 cores 32 threads")
    assert facts.memory is not None
    assert facts.memory.bandwidth_bytes_per_s == 5600 * 10**6 * 8 * 2
    assert "x 8 bytes x channels" in facts.sources["memory.bandwidth_bytes_per_s"]
    by_key = parse_hardware("ram: 64 GB\nbandwidth: DDR5-5600 dual channel").memory
    assert by_key is not None
    assert by_key.bandwidth_bytes_per_s == 5600 * 10**6 * 8 * 2
    assert facts.cpu is not None
    assert (facts.cpu.physical_cores, facts.cpu.logical_cores) == (16, 32)


def test_every_value_says_where_it_stands() -> None:
    facts = parse_hardware("16 GB RAM, RTX 4070 12 GB\nMac mini M4 16 GB".splitlines()[0], "box.yaml")
    assert facts.sources["memory.total_bytes"] == "box.yaml, line 1"
    assert facts.sources["gpus.0.vram_bytes"] == "box.yaml, line 1"
    assert facts.sources["gpus.0.name"] == "box.yaml, line 1"
    assert parse_hardware("8 GB RAM", "box.yaml").sources["gpus"] == "box.yaml names none"


def test_a_folder_is_a_capture() -> None:
    folder = shared_dir("machines") / "28-two-rtx-3090"
    assert read_hardware(folder) == probe_capture(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "describes no machine"),
        ("24GB", "'24GB' is not understood"),
        ("16 GB RAM, a fast computer", "'fast computer' is not understood"),
        ("16 GB RAM RTX 4070 12 GB", "has two sizes"),
        ("ram: sixteen", "takes a size with its unit"),
        ("ram: 16", "takes a size with its unit"),
        ("cores: many", "takes a whole number"),
        ("cores: true", "takes a whole number"),
        ("foo: 3", "there is no key 'foo'"),
        ("[1, 2]", "item 1 is neither text nor keys"),
        ("5", "is no description"),
        ("16 GB RAM, 32 GB RAM", "two values for ram"),
        ("gpus: [{memory: 12 GB}]", "a GPU takes the keys"),
        ("gpus: [{name: X, memory: 12}]", "without a unit"),
        ("900 x H200", "is no GPU"),
        ("a: [", "is no YAML"),
    ],
)
def test_nonsense_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(VeloError) as caught:
        parse_hardware(text, "box.yaml")
    assert message in caught.value.message
    assert caught.value.message.startswith("box.yaml")
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="cannot read the hardware file"):
        read_hardware(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00GB")
    with pytest.raises(VeloError, match="it is not text"):
        read_hardware(binary)
    long = tmp_path / "long.yaml"
    long.write_text("16 GB RAM\n" * 8000, encoding="utf-8")
    with pytest.raises(VeloError, match="longer than 64 KiB"):
        read_hardware(long)


_SIZES = ["16 GB", "TB", "8", "1e9", "GB/s"]
_NAMES = ["RAM", "RTX 4070", "M2", "Mac", "x", "cores", "gpus", "ram"]
WORDS = st.sampled_from([*_SIZES, *_NAMES, ",", "\n", ":", "- ", "{", "]"])


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map(" ".join)))
def test_any_text_is_facts_or_a_clear_error(text: str) -> None:
    try:
        facts = parse_hardware(text)
    except VeloError as error:
        assert error.message
        assert error.hint
    else:
        assert facts.sources


@given(st.integers(1, 999_999), st.sampled_from(["GB", "GiB", "MB", "TB", "G"]), st.booleans())
def test_sizes_are_powers_of_1024(count: int, unit: str, blank: bool) -> None:
    factor = {"m": GIB / 1024, "g": GIB, "t": GIB * 1024}[unit[0].lower()]
    assert parse_size(f"{count}{' ' if blank else ''}{unit}") == round(count * factor)
    assert parse_size(f"{count} {unit} RAM") is None


@given(st.integers(1, 99_999))
def test_speeds_are_decimal(count: int) -> None:
    assert parse_speed(f"{count} GB/s") == count * 10**9
    assert parse_speed(f"{count} GB") is None
