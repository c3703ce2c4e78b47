"""The models that people know, by name: which shape and which quantization stand behind ``qwen3:8b``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from velollm.errors import VeloError
from velollm.models.architectures import architecture_names
from velollm.models.catalog import load_catalog
from velollm.models.quantization import is_quantization
from velollm.models.shape import Shape, parse_shape, shape_of_row
from velollm.models.yamlfile import load_rows

_QUANTIZATION = "q4_K_M"


@dataclass(frozen=True)
class Family:
    """One known model: the names it goes by, its shape, and the quantization that it is usually got in."""

    names: tuple[str, ...]
    shape: Shape
    quantization: str

    @property
    def name(self) -> str:
        """The name that people know best."""
        return self.names[0]

    @property
    def is_tiny(self) -> bool:
        """Is it one of ours, that no model is like?"""
        return self.name.endswith(":tiny")


@cache
def read_families() -> tuple[Family, ...]:
    """The known models: those of the catalog that can be made, then the tiny ones of ours."""
    rows = {row.id: row for row in load_catalog()}
    entries = {entry["id"]: entry for entry in load_rows("families", "models")}
    known = [
        (rows[name].ollama, shape_of_row(rows[name], entry), rows[name].default_quant)
        for name, entry in entries.items()
    ]
    tiny = [((), parse_shape(entry), None) for entry in load_rows("tiny-families", "models")]
    makeable = architecture_names()
    return tuple(
        Family(_names(names, shape.name), shape, (quantization or _QUANTIZATION).replace("fp16", "f16"))
        for names, shape, quantization in (*known, *tiny)
        if shape.architecture in makeable
    )


def _names(names: Sequence[str], own: str) -> tuple[str, ...]:
    """Its names in the Ollama library, else one in that manner; last its own."""
    family, _, size = own.rpartition("-")
    return (*(names or (f"{family}:{size}",)), own)


def find_family(name: str) -> Family | None:
    """The known model of that name: ``FAMILY:SIZE``, or ``FAMILY`` alone, with or without a quantization behind it.

    A family alone is its usual model (its ``latest``), else its smallest one. A quantization follows as ``@q8_0`` or,
    as in Ollama's tags, as ``-q8_0``. None where there is no such model.
    """
    wanted = name.strip().lower().removesuffix(":latest")
    if (found := _by_name(wanted)) is not None:
        return found
    base, _, quantization = wanted.partition("@") if "@" in wanted else wanted.rpartition("-")
    quantization = quantization.replace("fp16", "f16")
    found = _by_name(base)
    if found is None or not is_quantization(quantization):
        return None
    return replace(found, quantization=quantization)


def _by_name(wanted: str) -> Family | None:
    families = read_families()
    for candidate in (wanted, f"{wanted}:latest", wanted.replace(":", "-")):
        for family in families:
            if candidate in (known.lower() for known in family.names):
                return family
    if ":" in wanted:
        return None
    own = [family for family in families if wanted in (known.partition(":")[0] for known in family.names)]
    return min(own, key=_size, default=None)


def _size(family: Family) -> tuple[bool, int]:
    return family.is_tiny, family.shape.layers * family.shape.embedding_length


def get_family(name: str) -> Family:
    """The known model of that name. Raises `VeloError` that tells what there is."""
    found = find_family(name)
    if found is not None:
        return found
    names = [known for family in read_families() for known in family.names if not known.endswith(":latest")]
    family = name.partition(":")[0].lower()
    near = [known for known in names if known.partition(":")[0] == family]
    near = near or difflib.get_close_matches(name.lower(), names, 5, 0.5)
    if near:
        raise VeloError(f"no shape is known of a model '{name}'", f"known sizes: {', '.join(near)}")
    families = sorted({known.partition(":")[0] for known in names if ":" in known})
    raise VeloError(f"no shape is known of a model '{name}'", f"known families: {', '.join(families)}")
