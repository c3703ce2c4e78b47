"""What an Ollama server says of itself over its HTTP interface, and where its models' files are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velollm.backends.ollama_find import blob_of, models_dir_of
from velollm.backends.ollama_store import find_ollama_blob
from velollm.errors import VeloError
from velollm.facts import InstalledModelFacts, LoadedModelFacts
from velollm.probe.ollama_installed import parse_installed
from velollm.targets.ollama_model import BEFORE_SUFFIX

if TYPE_CHECKING:
    from velollm.backends.ollama_http import OllamaApi

_NAMED_MODELS = 200
# The server reads each model's header to show it; so many take it less than a second.
_SHOWN_MODELS, _AT_ONCE = 32, 4


@dataclass(frozen=True)
class ApiReading:
    """Answers of one server. ``blobs``: the GGUF file of each loaded model, by its name; ``models``: as shown."""

    version: str
    installed: tuple[str, ...] | None = None
    loaded: tuple[LoadedModelFacts, ...] | None = None
    models_dir: str | None = None
    blobs: Mapping[str, str] = field(default_factory=dict)
    models: tuple[InstalledModelFacts, ...] | None = None


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
    # An original that a flight has put aside is not used, whatever its parameters are.
    own = [name for name in installed if BEFORE_SUFFIX not in name]
    names = list(dict.fromkeys([*(model.name for model in loaded), *own]))[:_SHOWN_MODELS]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        shown = dict(zip(names, pool.map(lambda name: _show(api, name), names), strict=True))
    texts = {name: str(answer.get("modelfile", "")) for name, answer in shown.items()}
    directory = next((found for text in texts.values() if (found := models_dir_of(text)) is not None), None)
    held = [model.name for model in loaded]
    blobs = {name: str(blob) for name in held if (blob := blob_of(texts.get(name, ""))) is not None}
    models = tuple(parse_installed(name, answer) for name, answer in shown.items() if answer)
    return ApiReading(version, installed, loaded, str(directory) if directory else None, blobs, models)


def _show(api: OllamaApi, name: str) -> dict[str, Any]:
    try:
        return api.show(name)
    except VeloError:
        return {}


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
