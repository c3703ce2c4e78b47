"""A model's header with its vocabulary, from wherever it can be read: a file, Ollama, or the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_http import OllamaRefusalError
from velollm.backends.ollama_registry import Registry, RemoteModel, local_name
from velollm.backends.ollama_store import default_model_dirs, installed_models
from velollm.errors import UsageError, VeloError
from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts
from velollm.models.header import GgufHeader, read_gguf
from velollm.models.shown import parse_shown_header
from velollm.models.tokenizer import TOKENS, Tokenizer, parse_with_tokens, tokenizer_of

Basis = Literal["file", "server", "registry"]
_KEPT = frozenset({TOKENS})


@dataclass(frozen=True)
class Source:
    """A model that could be read. ``basis``: its file here, what Ollama shows of it, or the head of the registry's.

    ``read_bytes``: what was loaded from a registry for it.
    """

    name: str
    header: GgufHeader
    basis: Basis
    path: Path | None = None
    read_bytes: int | None = None

    @cached_property
    def facts(self) -> ModelFacts:
        """The model that the header describes."""
        return model_facts(self.header, self.name)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises `VeloError` where it has none."""
        return tokenizer_of(self.header)


def read_file(name: str, path: Path) -> Source:
    """A GGUF file. Raises `VeloError` where it cannot be read."""
    return Source(name, read_gguf(path, texts=_KEPT), "file", path)


def is_file_name(name: str) -> bool:
    """Does a name mean a file, not a model of Ollama?"""
    try:
        return name.endswith(".gguf") or Path(name).expanduser().is_file()
    except OSError:
        return False


def find_here(name: str, backend: OllamaBackend) -> Source | None:
    """A model that is on this machine or on its server: a file, or an installed model; None where it is neither.

    Raises:
        VeloError: it is there, and cannot be read.
    """
    if is_file_name(name):
        return read_file(name, Path(name).expanduser())
    installed = local_name(name) if "://" in name else name
    try:
        found = backend.find_model(installed)
    except VeloError:
        return None
    if found.path is not None:
        return read_file(installed, found.path)
    shown = backend.api.show(installed, verbose=True)
    header = parse_shown(shown, installed, backend.file_bytes(installed))
    if header is None:
        raise VeloError(
            f"the file of {installed} cannot be read, and the server shows no vocabulary of it",
            "run this as a user who may read Ollama's models",
        )
    return Source(installed, header, "server")


def parse_shown(data: Mapping[str, Any], name: str, file_bytes: int | None = None) -> GgufHeader | None:
    """The header, with the tokens, of a verbose answer of `/api/show`; None where it holds no tokens."""
    header = parse_shown_header(data, name, file_bytes)
    tokens = data.get("model_info", {}).get(TOKENS) if header is not None else None
    if header is None or not isinstance(tokens, list) or not all(isinstance(text, str) for text in tokens):
        return None
    return replace(header, texts={TOKENS: tuple(text.encode() for text in tokens)})


def read_remote(registry: Registry, remote: RemoteModel) -> Source:
    """The head of a model that was not downloaded.

    Raises:
        VeloError: the registry gives no parts of files, cannot be reached, or the file is no model.
    """
    file = registry.open_head(remote)
    try:
        header = parse_with_tokens(file, Path(remote.name))
    except OSError as error:
        raise VeloError(
            f"the head of {remote.name} cannot be read at its registry: {error}", "it can be checked once it is here"
        ) from error
    return Source(remote.name, header, "registry", None, file.loaded_bytes)


def find_source(name: str, backend: OllamaBackend, registry: Registry) -> Source:
    """The model of that name: here, else its head at the registry.

    Raises:
        VeloError: there is none, or it cannot be read.
    """
    here = find_here(name, backend)
    if here is not None:
        return here
    try:
        return read_remote(registry, registry.find(name))
    except UsageError as error:
        raise VeloError(
            f"there is no model '{name}'", "give the path of a .gguf file, or a name like qwen2.5:0.5b"
        ) from error


def models_at_hand(
    backend: OllamaBackend, environ: Mapping[str, str], home: Path, files: Iterable[Path] = ()
) -> list[tuple[str, Path]]:
    """(name, file) of the models that are here: Ollama's that can be read, and the ``files`` given."""
    found = [(str(path), path) for path in files]
    if backend.version is None:
        return [*found, *(pair for place in default_model_dirs(environ, home) for pair in installed_models(place))]
    for tag in backend.api.tags():
        name = str(tag.get("name", ""))
        path = _path_of(backend, name)
        if path is not None:
            found.append((name, path))
    return found


def _path_of(backend: OllamaBackend, name: str) -> Path | None:
    try:
        return backend.find_model(name).path
    except (VeloError, OllamaRefusalError):
        return None
