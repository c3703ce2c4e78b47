"""Laying readers over each other."""

from __future__ import annotations

from velollm.facts import GpuFacts, PcieFacts
from velollm.probe.reading import Merger, Reading, given, mebibytes, number, real_uuid, short_pci, unsupported


def test_cells() -> None:
    assert given("[N/A]") is None
    assert given("Navi [Radeon RX]") == "Navi [Radeon RX]"
    assert unsupported("[Not Supported]")
    assert not unsupported("[Unknown Error]")
    assert number("700.00 W") == 700.0
    assert number("9" * 400) is None
    assert mebibytes("81559 MiB") == mebibytes("81559") == 81559 * 1024**2
    assert mebibytes("-1") is None


def test_addresses_and_names_of_devices() -> None:
    assert short_pci("00000000:0C:00.0") == "0000:0C:00.0"
    assert short_pci("0000000F:01:00.0") == "000F:01:00.0"
    assert short_pci("03:00.0") == "0000:03:00.0"
    assert short_pci("10000:01:00.0") == "00010000:01:00.0"
    assert short_pci("N/A") is None
    assert real_uuid("GPU-00000000-0000") is None
    assert real_uuid("GPU-XXXX-XX") is None
    assert real_uuid("GPU-de03-11") == "GPU-de03-11"


def reading(source: str, index: int | None = None, **facts: object) -> Reading:
    return Reading(GpuFacts.model_validate({"vendor": "nvidia"} | facts), source, index)


def test_the_first_word_stands_and_gaps_are_filled() -> None:
    merger = Merger()
    merger.add([reading("a", 0, name="first", pci="0000:0A:00.0", pcie=PcieFacts(gen=4))])
    merger.add([reading("b", 5, name="second", pci="0000:0a:00.0", vram_bytes=7, pcie=PcieFacts(gen=3, width=8))])
    (gpu,) = merger.facts()
    assert (gpu.name, gpu.vram_bytes, gpu.pcie) == ("first", 7, PcieFacts(gen=4, width=8))
    assert merger.sources()["gpus.0.vram_bytes"] == "b"


def test_a_bus_adds_no_card_to_a_vendor_that_was_read() -> None:
    merger = Merger()
    merger.add([reading("driver", 0, pci="0000:0A:00.0")])
    merger.add([reading("bus", pci="0000:0B:00.0"), reading("bus", vendor="amd", pci="0000:0C:00.0")], may_add=False)
    assert [gpu.pci for gpu in merger.facts()] == ["0000:0A:00.0", "0000:0C:00.0"]


def test_a_note_holds_for_every_gpu_of_its_vendor() -> None:
    merger = Merger()
    merger.add([reading("a", 0), reading("a", 3, driver_version="1"), reading("a", 0, vendor="amd")])
    merger.note(GpuFacts(vendor="nvidia", driver_version="2"), "note")
    assert [gpu.driver_version for gpu in merger.facts()] == ["2", "1", None]
    assert merger.sources()["gpus.0.driver_version"] == "note"


def test_a_word_about_no_gpu_in_particular_needs_a_single_gpu() -> None:
    merger = Merger()
    merger.add([reading("a", 0), reading("a", 1)])
    merger.add([reading("note", unified_memory=True)])
    assert [gpu.unified_memory for gpu in merger.facts()] == [None, None]
