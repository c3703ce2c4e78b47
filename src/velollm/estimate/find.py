"""From a model's name to its facts: a GGUF file, a model of Ollama (its file, else its server), or of the catalog."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from velollm.errors import VeloError
from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.projector import projector_facts


@dataclass(frozen=True)
class Found:
    """A model's facts, the file they are from (None: it is not here), and the backend that such names belong to.

    ``source``: what told the facts. ``unknown``: what it did not tell.
    """

    facts: ModelFacts
    path: Path | None
    backend: str
    source: Literal["file", "server", "catalog"] = "file"
    unknown: tuple[str, ...] = ()


def find_facts(name: str, environ: Mapping[str, str] | None = None, home: Path | None = None) -> Found:
    """The model of that name. A path that exists is a file, then come Ollama's store, its server, and the catalog.

    Raises:
        VeloError: there is none, or its file cannot be read.
    """
    path = Path(name).expanduser()
    if _looks_like_path(name, path):
        return Found(model_facts(read_gguf(path), name), path, "llamacpp")
    if (found := _find_in_ollama(name, environ or os.environ, home or Path.home())) is not None:
        return found
    if (shown := _ask_server(name, environ or os.environ)) is not None:
        return shown
    if (facts := _find_in_catalog(name)) is not None:
        return Found(facts, None, "ollama", "catalog")
    raise VeloError(
        f"there is no model '{name}'",
        "give the path of a .gguf file, an installed Ollama model (`ollama list`), or a name like llama3.1:8b@q4_K_M",
    )


def _looks_like_path(name: str, path: Path) -> bool:
    try:
        return path.suffix == ".gguf" or path.exists() or (os.sep in name and path.parent.is_dir())
    except OSError:
        return False


def _find_in_ollama(name: str, environ: Mapping[str, str], home: Path) -> Found | None:
    from velollm.backends.ollama_store import PROJECTOR_LAYER, default_model_dirs, find_ollama_blob

    for directory in default_model_dirs(environ, home):
        blob = find_ollama_blob(name, directory)
        if blob is None:
            continue
        facts = model_facts(read_gguf(blob), name)
        projector = find_ollama_blob(name, directory, PROJECTOR_LAYER)
        if projector is not None:
            facts = with_projector(facts, projector)
        return Found(facts, blob, "ollama")
    return None


def _ask_server(name: str, environ: Mapping[str, str]) -> Found | None:
    """What an Ollama server shows of a model whose file is not ours to read; None without such a server or model."""
    from velollm.backends.ollama import OllamaBackend
    from velollm.backends.ollama_find import parse_host
    from velollm.models.shown import parse_shown

    backend = OllamaBackend(parse_host(environ.get("OLLAMA_HOST")))
    try:
        shown = backend.api.show(name, verbose=True)
        facts = parse_shown(shown, name, backend.file_bytes(name))
    except VeloError:
        return None
    finally:
        backend.api.close()
    unknown = ("what turns pictures into embeddings",) if shown.get("projector_info") else ()
    return None if facts is None else Found(facts, None, "ollama", "server", unknown)


def with_projector(facts: ModelFacts, path: Path) -> ModelFacts:
    """The model with the projector of that file. Raises `VeloError` where it cannot be read."""
    header = read_gguf(path)
    size = sum(info.size_bytes or 0 for info in header.tensors) + (facts.projector_bytes or 0)
    return facts.model_copy(update={"projector_bytes": size, "projector": projector_facts(header)})


def _find_in_catalog(name: str) -> ModelFacts | None:
    from velollm.models.catalog import find_catalog_model

    return find_catalog_model(name)
