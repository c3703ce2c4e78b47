"""How to get a recommended model: it is there, it is pulled, or it is made of a 16-bit one that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from velollm.backends.ollama_get import MAKES, Report, pull_model, quantize_model
from velollm.backends.ollama_http import OllamaApi
from velollm.errors import VeloError
from velollm.models.catalog import CatalogChoice, catalog_listed, find_catalog_choice
from velollm.recommend.options import Option
from velollm.units import render_bytes

_PLAIN = ("F16", "BF16", "F32")
_SUFFIXES = ("-fp16", "-f16", "-bf16", "-f32")
# Left on the disk beside the new file.
_RESERVE_BYTES = 1024**3


@dataclass(frozen=True)
class Way:
    """One way to get a model. ``name``: what it will be called in Ollama; ``source``: the model it is made of.

    ``command``: what a person types for it; ``needs_bytes``: disk space (None: unknown). ``listed``: the day when the
    library was known to have it.
    """

    kind: Literal["installed", "pull", "quantize"]
    name: str
    command: str
    source: str | None = None
    format: str | None = None
    needs_bytes: int | None = None
    listed: str | None = None


def way_to(option: Option, installed: Iterable[Mapping[str, Any]], *, source: str | None = None) -> Way | None:
    """How to get the option: without work where it is installed, else made here, else pulled; None where nobody can.

    ``installed``: entries of `/api/tags`; ``source``: the installed 16-bit model that the option is a format of.
    """
    names = {str(entry.get("name", "")): entry for entry in installed}
    wanted = option.choice.ollama_name if option.choice is not None else option.name
    if wanted is not None and (here := _find(names, wanted)) is not None:
        return Way("installed", here, f"ollama run {here}")
    plain = source or _plain_source(option.choice, names)
    if plain is not None and option.format in MAKES:
        name = made_name(plain, option.format)
        if (here := _find(names, name)) is not None:
            return Way("installed", here, f"ollama run {here}")
        command = f"echo 'FROM {plain}' > Modelfile && ollama create {name} --quantize {option.format}"
        return Way("quantize", name, command, plain, option.format, option.download_bytes)
    if wanted is not None and option.choice is not None:
        return Way("pull", wanted, f"ollama pull {wanted}", needs_bytes=option.download_bytes, listed=catalog_listed())
    return None


def _find(names: Mapping[str, object], wanted: str) -> str | None:
    for name in (wanted, f"{wanted}:latest"):
        if name in names:
            return name.removesuffix(":latest") if wanted == name.removesuffix(":latest") else name
    return None


def _plain_source(choice: CatalogChoice | None, names: Mapping[str, Mapping[str, Any]]) -> str | None:
    """An installed model with 16-bit weights that is the same model of the catalog."""
    if choice is None:
        return None
    for name, entry in names.items():
        details = entry.get("details")
        level = details.get("quantization_level") if isinstance(details, dict) else None
        found = find_catalog_choice(name)
        if level in _PLAIN and found is not None and found.row.id == choice.row.id:
            return name
    return None


def made_name(source: str, form: str) -> str:
    """Name of the model that is made: the source's, with its format in place of the 16 bits."""
    base = source.removesuffix(":latest")
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return f"{base}-{form}" if ":" in base else f"{base}:{form}"


def check_space(way: Way, directory: Path | None, free: Callable[[Path], int] | None = None) -> str | None:
    """A note where the space on the server's disk is unknown (a server elsewhere, an unreadable directory).

    Raises:
        VeloError: the disk has not enough room.
    """
    if way.needs_bytes is None:
        return None
    measure = free or (lambda path: shutil.disk_usage(path).free)
    place = directory
    while place is not None and not place.exists():
        place = place.parent if place.parent != place else None
    if place is None:
        return "how much disk space the server has is unknown"
    try:
        left = measure(place)
    except OSError:
        return "how much disk space the server has is unknown"
    if left < way.needs_bytes + _RESERVE_BYTES:
        needs = f"{render_bytes(way.needs_bytes)} and 1 GiB to spare"
        raise VeloError(
            f"{way.name} needs {needs}, and {place} has only {render_bytes(left)}",
            "free some disk space, or take a smaller model or format",
        )
    return None


def take(way: Way, api: OllamaApi, report: Report) -> None:
    """Go the way: pull or make the model.

    Raises:
        VeloError: it did not work; nothing but what Ollama keeps for the next try is left behind.
    """
    if way.kind == "pull":
        pull_model(api, way.name, report)
    elif way.kind == "quantize" and way.source is not None and way.format is not None:
        quantize_model(api, way.name, way.source, way.format, report)
