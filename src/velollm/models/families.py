"""The models that people know, by name: which shape and which quantization stand behind ``qwen3:8b``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from velollm.config import data_dir
from velollm.errors import VeloError
from velollm.models.architectures import architecture_names
from velollm.models.quantization import is_quantization
from velollm.models.shape import Shape, parse_shape

_FILES = ("families.yaml", "tiny-families.yaml")
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


def parse_families(entries: Sequence[Mapping[str, Any]]) -> tuple[Family, ...]:
    """The known models of catalog entries; those of architectures that cannot be made are left out."""
    makeable = architecture_names()
    return tuple(
        Family(
            _names(entry),
            parse_shape(entry),
            (entry.get("ollama_default_quant") or _QUANTIZATION).replace("fp16", "f16"),
        )
        for entry in entries
        if entry["arch"] in makeable
    )


def _names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Its names in the Ollama library, else one in that manner; last its own."""
    family, _, size = entry["id"].rpartition("-")
    return (*(entry.get("ollama") or (f"{family}:{size}",)), entry["id"])


@cache
def read_families(directory: Path | None = None) -> tuple[Family, ...]:
    """The known models, from the files that ship with the program."""
    import yaml

    found: list[Family] = []
    for name in _FILES:
        text = ((directory or data_dir("configs")) / name).read_text(encoding="utf-8")
        found.extend(parse_families(yaml.safe_load(text)["models"]))
    return tuple(found)


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
