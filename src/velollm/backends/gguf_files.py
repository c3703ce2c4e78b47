"""A model's name to its GGUF file: a path, or an Ollama name through Ollama's own store."""

from __future__ import annotations

import os
from pathlib import Path

from velollm.backends.base import ModelRef
from velollm.errors import VeloError


def find_gguf(name: str) -> ModelRef:
    """The GGUF file behind a path or an Ollama name.

    Raises:
        VeloError: there is no such file or name, or it cannot be read.
    """
    path = Path(name).expanduser()
    looks_like_path = path.suffix == ".gguf" or (os.sep in name and path.parent.exists())
    try:
        if path.is_dir():
            raise VeloError(f"{name} is a directory, not a model", "give the .gguf file inside it")
        if path.is_file():
            return ModelRef(name, path.resolve())
    except OSError as error:
        raise VeloError(f"cannot read {name}: {error.strerror}", "check the rights of the directory") from error
    if not looks_like_path and (blob := _find_in_ollama(name)) is not None:
        return ModelRef(name, blob)
    raise VeloError(
        f"there is no model '{name}'",
        "give the path of a .gguf file or the name of an installed Ollama model (`ollama list`)",
    )


def _find_in_ollama(name: str) -> Path | None:
    from velollm.backends.ollama_store import default_model_dirs, find_ollama_blob

    for directory in default_model_dirs(os.environ, Path.home()):
        if (blob := find_ollama_blob(name, directory)) is not None:
            return blob
    return None
