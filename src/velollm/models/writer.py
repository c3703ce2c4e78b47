"""Write a GGUF file: header at once, tensor data streamed, the file in place only when it is whole.

Where the system can, the file has no name until then, so that even a maker that is killed leaves nothing.

Format: docs/gguf.md of ggml, version 3, little-endian, alignment 32.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from velollm.errors import VeloError
from velollm.models.types import TENSOR_TYPES, TYPE_IDS
from velollm.units import MIB, render_bytes

_ALIGNMENT = 32
_BUFFER_BYTES = 4 * MIB
_NO_SPACE_HINT = "free some disk space, or choose a place on a larger disk that you may write to"

Progress = Callable[[int, int], None]
WriteValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Make = Callable[[int, "NewTensor"], Iterator[bytes | memoryview]]


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: ``shape`` with the row length first, ``type_name`` such as ``q4_0``."""

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def elements(self) -> int:
        """How many values it holds."""
        total = 1
        for length in self.shape:
            total *= length
        return total

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return TENSOR_TYPES[TYPE_IDS[self.type_name]].bytes_of(self.elements)


def render_header(metadata: Iterable[tuple[str, WriteValue]], tensors: Sequence[NewTensor]) -> bytes:
    """The bytes of a file before its tensor data, padded to the alignment.

    Whole numbers are written as uint32 where they fit, as int32 or uint64 where not (in lists: int32), others as
    float32.
    """
    entries = list(metadata)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)))
    for key, value in entries:
        out += _text(key) + _value(value)
    offset = 0
    for tensor in tensors:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        out += struct.pack("<IQ", TYPE_IDS[tensor.type_name], offset)
        offset += _padded(tensor.size_bytes)
    return bytes(out) + bytes(_padded(len(out)) - len(out))


def data_bytes(tensors: Iterable[NewTensor]) -> int:
    """Bytes of all tensor data with padding."""
    return sum(_padded(tensor.size_bytes) for tensor in tensors)


def write_file(
    path: Path,
    header: bytes,
    tensors: Sequence[NewTensor],
    make: Make,
    progress: Progress | None = None,
) -> None:
    """Write a whole file; ``make(index, tensor)`` yields the data of one tensor in pieces.

    The file is written without a name, or under a temporary one beside ``path``, and gets its own at the end;
    whatever ends this early (an error, Ctrl-C), nothing half-written is left.

    Raises:
        VeloError: the disk is full, or the directory cannot be written.
    """
    total = len(header) + data_bytes(tensors)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with _open_part(part) as file:
                _write(file, header, tensors, make, lambda done: progress(done, total) if progress else None)
                file.flush()
                if not part.exists():
                    # A directory of the source, though not needed, makes Python follow the link that /proc has.
                    os.link(f"/proc/self/fd/{file.fileno()}", part, src_dir_fd=file.fileno())
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise VeloError(
            f"cannot write the model {path} ({render_bytes(total)}): {error.strerror or error}", _NO_SPACE_HINT
        ) from error


def _open_part(part: Path) -> BinaryIO:
    """A file to write that has no name yet (Linux, ``O_TMPFILE``), else one of the name ``part``."""
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is not None and Path("/proc/self/fd").is_dir():
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(part.parent, unnamed | os.O_WRONLY, 0o666), "wb", buffering=_BUFFER_BYTES)
    return part.open("wb", buffering=_BUFFER_BYTES)


def _write(
    file: BinaryIO,
    header: bytes,
    tensors: Sequence[NewTensor],
    make: Make,
    progress: Callable[[int], None],
) -> None:
    done = file.write(header)
    for index, tensor in enumerate(tensors):
        written = 0
        for piece in make(index, tensor):
            written += file.write(piece)
            progress(done + written)
        if written != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: {written} bytes made, {tensor.size_bytes} needed")
        done += written + file.write(bytes(_padded(written) - written))
    progress(done)


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: WriteValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return struct.pack("<II", 4, value)
        return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<IQ", 10, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return _list(value)


def _list(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(_text, texts))
    if values and all(isinstance(value, bool) for value in values):
        return struct.pack("<IIQ", 9, 7, len(values)) + bytes(map(bool, values))
    kind, letter = (6, "f") if any(isinstance(value, float) for value in values) else (5, "i")
    return struct.pack("<IIQ", 9, kind, len(values)) + struct.pack(f"<{len(values)}{letter}", *values)
