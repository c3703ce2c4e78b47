"""Small GGUF files for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from velollm.models.gguf import GgufHeader, read_gguf
from velollm.models.writer import NewTensor, WriteValue, data_bytes, render_header


def write_gguf(path: Path, metadata: Iterable[tuple[str, WriteValue]], tensors: Iterable[NewTensor] = ()) -> Path:
    """A GGUF file with that header and as many zero bytes as its tensors need."""
    tensors = tuple(tensors)
    header = render_header(metadata, tensors)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + data_bytes(tensors))
    return path


def header_of(path: Path, metadata: dict[str, WriteValue], tensors: Iterable[NewTensor] = ()) -> GgufHeader:
    """The header read back from a file with that metadata."""
    return read_gguf(write_gguf(path / "model.gguf", metadata.items(), tensors))
