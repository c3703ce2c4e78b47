"""What an Ollama server says of itself over its HTTP interface, and where its models' files are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velollm.backends.ollama_find import blob_of, models_dir_of
from velollm.backends.ollama_store import find_ollama_blob
from velollm.errors import VeloError
from velollm.facts import LoadedModelFacts

if TYPE_CHECKING:
    from velollm.backends.ollama_http import OllamaApi

_NAMED_MODELS = 200


@dataclass(frozen=True)
class ApiReading:
    """Answers of one server. ``blobs``: the GGUF file of each loaded model, by its name."""

    version: str
    installed: tuple[str, ...] | None = None
    loaded: tuple[LoadedModelFacts, ...] | None = None
    models_dir: str | None = None
    blobs: Mapping[str, str] = field(default_factory=dict)


def read_api(url: str) -> ApiReading | None:
    """Ask the server at ``url``; None where what answers there is no Ollama."""
    # An HTTP client takes a tenth of a second to import, which is for nothing where no server is.
    from velollm.backends.ollama_http import OllamaApi

    api = OllamaApi(url)
    try:
        return _read(api)
    finally:
        api.close()


def _read(api: OllamaApi) -> ApiReading | None:
    try:
        version = api.version()
    except VeloError:
        return None
    if not version:
        return None
    try:
        installed = tuple(str(tag["name"]) for tag in api.tags() if tag.get("name"))
    except VeloError:
        return ApiReading(version)
    try:
        loaded = tuple(parse_loaded_facts(entry) for entry in api.loaded())
    except VeloError:
        return ApiReading(version, installed)
    shown = {model.name: _modelfile(api, model.name) for model in loaded}
    modelfiles = [*shown.values(), *(_modelfile(api, name) for name in installed[:1] if not shown)]
    directory = next((found for text in modelfiles if (found := models_dir_of(text)) is not None), None)
    blobs = {name: str(blob) for name, text in shown.items() if (blob := blob_of(text)) is not None}
    return ApiReading(version, installed, loaded, str(directory) if directory else None, blobs)


def _modelfile(api: OllamaApi, name: str) -> str:
    try:
        return str(api.show(name).get("modelfile", ""))
    except VeloError:
        return ""


def parse_loaded_facts(entry: Mapping[str, Any]) -> LoadedModelFacts:
    """One entry of `/api/ps`; what it leaves out is None."""
    from velollm.backends.ollama_http import parse_loaded

    model = parse_loaded(entry)
    return LoadedModelFacts(
        name=model.name,
        size_bytes=model.size_bytes or None,
        gpu_bytes=model.size_vram_bytes if isinstance(entry.get("size_vram"), int) else None,
        context_tokens=model.context_tokens,
        keep_alive_left_s=model.keep_alive_left_s() if entry.get("expires_at") else None,
    )


def read_blob_names(names: Iterable[str], models_dir: Path) -> dict[str, str]:
    """Names of installed models by the path of their GGUF file; several names of one file are joined."""
    found: dict[str, list[str]] = {}
    for name in list(names)[:_NAMED_MODELS]:
        blob = find_ollama_blob(name, models_dir)
        if blob is not None:
            found.setdefault(str(blob), []).append(name)
    return {blob: ", ".join(sorted(known)) for blob, known in found.items()}
