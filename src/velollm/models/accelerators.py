"""What is known of an accelerator beyond what its driver tells: memory bandwidth, compute, kernels.

The table is `configs/accelerators.yaml`. A GPU is matched by the name that its driver reports, then by PCI id, memory
size and core count. Where several rows are left, only what all of them agree on is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from velollm.facts import Facts, Frozen, GpuFacts, MemoryFacts
from velollm.models.yamlfile import load_rows

# Drivers report a little less than a card holds: 3 to 6 % with ECC, and what they keep for themselves (a card of 6 GiB
# shows 5.6 GiB in the server's log of machine captures).
_LEAST_SHARE, _MOST_SHARE = 0.90, 1.05
# Words of a product's name that people leave out.
_BRANDS = frozenset(
    {"nvidia", "geforce", "amd", "radeon", "intel", "apple", "qualcomm", "graphics", "gpu", "tesla", "the"}
)
_LAPTOP = frozenset({"laptop", "mobile", "notebook"})
# Series and packages that people leave out as well, where the rest says enough.
_OPTIONAL = frozenset(
    {"rtx", "gtx", "rx", "arc", "instinct", "quadro", "snapdragon", "jetson", "blackwell", "generation"}
    | {"pcie", "sxm", "sxm2", "sxm4", "sxm5", "nvl"}
)
_SIZE = re.compile(r"^\d+(?:gb|gib|g)$")
_WORD = re.compile(r"[a-z0-9.]+")
_PCI_DEVICE = re.compile(r"^(?:0x)?([0-9a-f]{4})$")
_TABLE = "table of accelerators"
_VENDOR_IDS = {"nvidia": "10de", "amd": "1002", "intel": "8086"}


class Accelerator(Frozen):
    """One row of the table, or what several rows agree on; its fields are explained at the head of the file."""

    id: str
    vendor: Literal["nvidia", "amd", "intel", "qualcomm", "apple"]
    name: str
    match: tuple[str, ...] = ()
    pci_ids: tuple[str, ...] = ()
    form: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    gfx: str | None = None
    gpu_cores: int | None = None
    vram_bytes: int | None = None
    unified: bool = False
    unified_max_bytes: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    fp16_tflops: float | None = None
    fp16_fp32_sum_tflops: float | None = None
    fp16_basis: str | None = None
    fp32_tflops: float | None = None
    tdp_watts: int | None = None
    pcie_gen: int | None = None
    pcie_lanes: int | None = None
    flash_attention: str | None = None
    linux_backend: str | None = None
    basis: Literal["page", "memory"]
    from_memory: tuple[str, ...] = ()
    source: str

    @property
    def bandwidth_is_from_memory(self) -> bool:
        """Was the bandwidth not read on a page?"""
        return self.basis == "memory" or "memory_bandwidth_bytes_per_s" in self.from_memory


@lru_cache(maxsize=1)
def load_accelerators() -> tuple[Accelerator, ...]:
    """All rows of the table.

    Raises:
        VeloError: the table that ships with the program is missing or broken.
    """
    return tuple(Accelerator.model_validate(row) for row in load_rows("accelerators", "accelerators"))


def match_accelerator(gpu: GpuFacts, *, unified_bytes: int | None = None) -> Accelerator | None:
    """What the table knows of a GPU; None where it knows none of that name.

    ``unified_bytes``: main memory of the machine, for parts that share it. Several rows that fit are merged: a
    value in which they differ is None, and the name lists them.
    """
    found = _by_name(gpu) or _by_pci(gpu)
    if gpu.gpu_cores is not None and any(row.gpu_cores is not None for row in found):
        found = [row for row in found if row.gpu_cores in (None, gpu.gpu_cores)]
    found = _of_size(found, gpu.vram_bytes)
    found = _of_largest(found, unified_bytes)
    return _merged(found)


def _by_name(gpu: GpuFacts) -> list[Accelerator]:
    if gpu.name is None:
        return []
    # A PCI database gives the chip and, in brackets, the product: `GP104 [GeForce GTX 1070]`.
    bracketed = re.search(r"\[([^]]+)\]\s*$", gpu.name)
    names = [gpu.name.strip(), *([bracketed.group(1)] if bracketed else [])]
    rows = [row for row in load_accelerators() if gpu.vendor in (None, row.vendor)]
    return [row for row in rows if any(re.search(p, name, re.IGNORECASE) for p in row.match for name in names)]


def _by_pci(gpu: GpuFacts) -> list[Accelerator]:
    """By PCI id: with NVIDIA an id is one product, with others it is a chip that several products share."""
    device = _PCI_DEVICE.match((gpu.pci_device_id or "").lower())
    if device is None or gpu.vendor != "nvidia":
        return []
    wanted = f"{_VENDOR_IDS[gpu.vendor]}:{device.group(1)}"
    return [row for row in load_accelerators() if wanted in row.pci_ids]


def _of_size(rows: list[Accelerator], vram_bytes: int | None) -> list[Accelerator]:
    """Rows whose memory could be reported as ``vram_bytes``; none where a size is known and fits no row."""
    if vram_bytes is None:
        return rows
    return [row for row in rows if row.vram_bytes is None or _LEAST_SHARE <= vram_bytes / row.vram_bytes <= _MOST_SHARE]


def _of_largest(rows: list[Accelerator], unified_bytes: int | None) -> list[Accelerator]:
    """Of rows that differ in the largest memory they were sold with, those that can hold as much as there is."""
    if unified_bytes is None:
        return rows
    fitting = [row for row in rows if row.unified_max_bytes is None or row.unified_max_bytes >= unified_bytes]
    return fitting or rows


def _merged(rows: Sequence[Accelerator]) -> Accelerator | None:
    if not rows:
        return None
    if len(rows) == 1:
        return rows[0]
    values: list[dict[str, Any]] = [row.model_dump() for row in rows]
    shared = {key: value for key, value in values[0].items() if all(other[key] == value for other in values)}
    unsure = sorted({name for row in rows for name in row.from_memory})
    basis = "memory" if any(row.basis == "memory" for row in rows) else "page"
    fixed = {
        "id": " or ".join(row.id for row in rows),
        "name": " or ".join(dict.fromkeys(row.name for row in rows)),
        "vendor": rows[0].vendor,
        "basis": basis,
        "from_memory": unsure,
        "source": rows[0].source,
    }
    return Accelerator.model_validate({**shared, **fixed})


def accelerators_named(text: str, *, memory_bytes: int | None = None) -> tuple[Accelerator, ...]:
    """Rows that a person means by ``RTX 4070``, ``geforce rtx 4070 12 GB``, ``H200`` or ``M2 Max``.

    All words of the text but brands and sizes must be in the product's name, and of the name only brands, series and
    packages may be left out; a laptop's part is meant only where the text says so. ``memory_bytes`` picks among rows of
    one name and several sizes.
    """
    wanted, laptop = _words(text)
    if not wanted:
        return ()
    named = [(row, *_words(row.name)) for row in load_accelerators()]
    rows = [row for row, words, mobile in named if words == wanted and mobile == laptop]
    if not rows:
        rows = [
            row for row, words, mobile in named if wanted < words and words - wanted <= _OPTIONAL and mobile == laptop
        ]
    if not rows:
        rows = [row for row in load_accelerators() if _reported_as(row, text)]
    return tuple(_of_size(rows, memory_bytes) or rows)


def _reported_as(row: Accelerator, text: str) -> bool:
    return any(re.search(pattern, text.strip(), re.IGNORECASE) for pattern in row.match)


def _words(text: str) -> tuple[frozenset[str], bool]:
    """Words that tell products apart, and whether a laptop's part is meant."""
    joined = re.sub(r"\(.*?\)", " ", text.lower())
    joined = re.sub(r"(\d)\s+(gb|gib)\b", r"\1\2", joined)
    # `RTX4070` and `4070Ti` are `RTX 4070` and `4070 Ti`.
    joined = re.sub(r"\b(rtx|gtx|rx|arc)(?=[a-z]?\d)", r"\1 ", joined)
    joined = re.sub(r"(?<=\d)(ti|super|xtx|xt|gre)\b", r" \1", joined)
    words = {word for word in _WORD.findall(joined) if word not in _BRANDS and not _SIZE.match(word)}
    return frozenset(words - _LAPTOP), bool(words & _LAPTOP)


def merge_accelerators(rows: Sequence[Accelerator]) -> Accelerator | None:
    """What several rows agree on; None for no rows."""
    return _merged(rows)


def fill_from_table(facts: Facts) -> Facts:
    """A described machine with what the table knows of its GPUs: vendor, memory, and whether it is shared.

    For descriptions only: what a driver reports is never replaced, and what rows of the same name differ in stays
    unknown. The memory of a part that shares it is main memory.
    """
    if not facts.gpus:
        return facts
    sources, memory = dict(facts.sources), facts.memory
    gpus = []
    for index, gpu in enumerate(facts.gpus):
        row = merge_accelerators(accelerators_named(gpu.name or "", memory_bytes=gpu.vram_bytes))
        filled = {} if row is None else _missing(gpu, row)
        if row is not None and row.unified and gpu.vram_bytes is not None:
            filled["vram_bytes"] = None
            said = sources.pop(f"gpus.{index}.vram_bytes", "the GPU's own size")
            if memory is None or memory.total_bytes is None:
                memory = (memory or MemoryFacts()).model_copy(update={"total_bytes": gpu.vram_bytes})
                sources["memory.total_bytes"] = said
        sources.update({f"gpus.{index}.{key}": _TABLE for key, value in filled.items() if value is not None})
        gpus.append(gpu.model_copy(update=filled))
    return facts.model_copy(update={"gpus": tuple(gpus), "memory": memory, "sources": sources})


def _missing(gpu: GpuFacts, row: Accelerator) -> dict[str, object]:
    shared = row.unified or row.form == "igpu"
    known: dict[str, object] = {
        "vendor": row.vendor,
        "compute_capability": row.compute_capability,
        "gfx": row.gfx,
        "integrated": shared,
        "unified_memory": shared,
        "vram_bytes": None if shared else row.vram_bytes,
    }
    return {key: value for key, value in known.items() if value is not None and getattr(gpu, key) is None}
