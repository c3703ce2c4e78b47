"""The header of a GGUF file, read with bounds: a damaged or hostile file takes neither memory nor time.

Format: docs/gguf.md of ggml, versions 2 and 3, little-endian. Arrays and texts too long to be of use (a
vocabulary has 32,000 to 260,000 entries) are passed over in place: no Python object is made of their entries.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from velollm.errors import VeloError
from velollm.models.types import TENSOR_TYPES, TensorType
from velollm.units import MIB, render_bytes

# The longest headers known, with 260,000 tokens and as many merges, take 12 to 20 MiB.
MAX_HEADER_BYTES = 64 * MIB

_MAGIC = b"GGUF"
_BLOCK_BYTES = MIB
_MAX_ENTRIES = 10_000
_MAX_TENSORS = 65_536
_MAX_NAME_BYTES = 4096
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_KEPT_ARRAY = 1024
_KEPT_TEXT_BYTES = 16 * 1024
_KEPT_BYTES = 8 * MIB
_MAX_ELEMENTS = 1 << 62
# Vocabularies known have up to 262,144 tokens.
_MAX_TEXTS = 1 << 20

_TEXT, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TYPE_NAMES = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    7: "bool",
    _TEXT: "string",
    _ARRAY: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Passed:
    """A value that is too long to keep: ``count`` entries of ``kind`` (for a text, its bytes)."""

    kind: str
    count: int


Scalar = int | float | bool
MetaValue = Scalar | str | tuple[Scalar, ...] | Passed


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` with the row length first, ``offset`` from the start of the tensor data.

    ``type_name`` and ``size_bytes``: ``type 99`` and None for a number format that we do not know.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    elements: int
    size_bytes: int | None


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its tensor data, which begins at ``data_offset``.

    ``texts``: the lists of texts that were asked for, whole; other long lists are passed over.
    """

    path: Path
    file_bytes: int
    version: int
    metadata: Mapping[str, MetaValue]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    texts: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


class Readable(Protocol):
    """What a header is read from: an open file, or something like it that lies elsewhere."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset from the beginning (0), from here (1) or from the end (2)."""

    def read(self, size: int = -1, /) -> bytes | None:
        """The next bytes, some or all of them; none at the end."""


class _DamagedError(Exception):
    """The bytes cannot be the header of a GGUF file; the text says what is wrong."""


def read_gguf(
    path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES, texts: frozenset[str] = frozenset()
) -> GgufHeader:
    """The header of a GGUF file; ``texts`` are keys whose lists of texts are kept.

    Memory stays within a few MiB beside what is kept (at most 8 MiB of names and values, and the lists asked for),
    whatever the file says.

    Raises:
        VeloError: the file cannot be read, is no GGUF file, is damaged, is shorter than its tensors need,
            or its header is longer than ``max_header_bytes``.
    """
    try:
        if path.is_dir():
            raise VeloError(f"{path} is a directory, not a model", "give the .gguf file inside it")
        if path.exists() and not path.is_file():
            raise VeloError(f"{path} is no regular file", "give the path of a .gguf file")
        with path.open("rb", buffering=0) as file:
            return parse_gguf(file, path, max_header_bytes=max_header_bytes, texts=texts)
    except OSError as error:
        raise VeloError(
            f"cannot read {path}: {error.strerror or error}", "check that the file is there and that you may read it"
        ) from error


def parse_gguf(
    file: Readable, path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES, texts: frozenset[str] = frozenset()
) -> GgufHeader:
    """The header of an open file, which may lie elsewhere: it is read in blocks, in order, as far as the header goes.

    Raises:
        VeloError: as `read_gguf`, but for what opening a path can bring.
        OSError: the file cannot be read.
    """
    try:
        return _parse(_Cursor(file, max_header_bytes), path, texts)
    except _DamagedError as error:
        raise VeloError(f"{path} is not a usable GGUF model: {error}", "download or make the file again") from error


class _Cursor:
    """Walks forward through a file in blocks of 1 MiB, never past ``limit`` bytes."""

    def __init__(self, file: Readable, limit: int) -> None:
        self._file = file
        self._limit = limit
        self.file_bytes = file.seek(0, 2)
        self._start = 0
        self._buffer = b""
        self._at = 0
        self._kept = 0

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes between here and the end of what a header may take."""
        return min(self._limit, self.file_bytes) - self.position

    def _check(self, count: int) -> None:
        if count <= self.left:
            return
        if self.position + count > self.file_bytes:
            raise _DamagedError(f"it ends within its header (it has {self.file_bytes} bytes)")
        raise _DamagedError(f"its header is longer than {render_bytes(self._limit)}")

    def _need(self, count: int) -> None:
        """Have at least ``count`` bytes from here on in the buffer."""
        if self._at + count <= len(self._buffer):
            return
        self._check(count)
        self._start += self._at
        self._file.seek(self._start)
        self._buffer = self._read(max(count, min(_BLOCK_BYTES, self.left + self._at)))
        self._at = 0
        if len(self._buffer) < count:
            raise _DamagedError("it became shorter while it was read")

    def _read(self, count: int) -> bytes:
        parts = []
        while count > 0 and (part := self._file.read(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self._need(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes without reading them."""
        self._check(count)
        self._at += count

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def keep(self, count: int) -> None:
        """Count ``count`` bytes as kept in memory."""
        self._kept += count
        if self._kept > _KEPT_BYTES:
            raise _DamagedError("it has more metadata than any model needs")

    def text(self, most: int) -> str | Passed:
        """A text with its length before it; one of more than ``most`` bytes is passed over."""
        length = self.u64()
        if length > most:
            self.skip(length)
            return Passed("string", length)
        self.keep(length)
        return self.take(length).decode("utf-8", "replace")

    def name(self) -> str:
        """A text that must be short."""
        found = self.text(_MAX_NAME_BYTES)
        if isinstance(found, Passed):
            raise _DamagedError(f"it has a name of {found.count} bytes")
        return found

    def texts(self, count: int) -> tuple[bytes, ...]:
        """The next ``count`` texts, as they are."""
        if count > _MAX_TEXTS:
            raise _DamagedError(f"it has a list of {count} texts")
        found: list[bytes] = []
        while len(found) < count:
            # One by one where a text reaches beyond the buffer, else straight from it.
            found.append(self.take(self.u64()))
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            while len(found) < count and at + 8 <= end:
                start = at + 8
                at = start + _U64.unpack_from(buffer, at)[0]
                if at > end:
                    break
                found.append(buffer[start:at])
                self._at = at
        return tuple(found)

    def skip_texts(self, count: int) -> None:
        """Pass over ``count`` texts, looking only at their lengths."""
        unpack = _U64.unpack_from
        while count:
            self._need(8)
            buffer, at = self._buffer, self._at
            walked = 0
            try:
                for walked in range(count):  # noqa: B007
                    at += 8 + unpack(buffer, at)[0]
                walked = count
            except (struct.error, OverflowError):
                # The next length lies beyond the buffer (or a length is absurd, which `skip` finds out).
                pass
            self.skip(at - self._at)
            count -= walked


def _parse(cursor: _Cursor, path: Path, keep: frozenset[str] = frozenset()) -> GgufHeader:
    if cursor.file_bytes == 0:
        raise _DamagedError("it is empty")
    if cursor.file_bytes < len(_MAGIC) or cursor.take(len(_MAGIC)) != _MAGIC:
        raise _DamagedError("it does not begin with the letters GGUF")
    version = cursor.u32()
    if version not in (2, 3):
        raise _DamagedError(_why_not(version))
    tensors, entries = cursor.u64(), cursor.u64()
    if entries > _MAX_ENTRIES:
        raise _DamagedError(f"it claims {entries} metadata entries")
    if tensors > _MAX_TENSORS:
        raise _DamagedError(f"it claims {tensors} tensors")
    metadata: dict[str, MetaValue] = {}
    texts: dict[str, tuple[bytes, ...]] = {}
    for _ in range(entries):
        key = cursor.name()
        if key in metadata:
            raise _DamagedError(f"it has the key {key[:80]!r} twice")
        metadata[key] = _read_value(cursor, key, cursor.u32(), texts if key in keep else None)
    infos = tuple(_read_tensor(cursor) for _ in range(tensors))
    data_offset = _aligned(cursor.position, _alignment(metadata))
    header = GgufHeader(path, cursor.file_bytes, version, metadata, infos, data_offset, texts)
    _check_extent(header)
    return header


def _why_not(version: int) -> str:
    if version and version & 0xFFFF == 0:
        return "it is big-endian, which llama.cpp runs only on big-endian machines"
    if version == 1:
        return "it has the old format version 1; convert the model again"
    return f"it has format version {version}, and only 2 and 3 are known"


def _alignment(metadata: Mapping[str, MetaValue]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 0 < value <= MIB or value & (value - 1):
        raise _DamagedError(f"its alignment is {value}, not a power of two")
    return int(value)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _read_value(cursor: _Cursor, key: str, kind: int, texts: dict[str, tuple[bytes, ...]] | None) -> MetaValue:
    """The next value; a list of texts goes into ``texts`` too where that is given."""
    if kind == _TEXT:
        return cursor.text(_KEPT_TEXT_BYTES)
    if kind == _ARRAY:
        return _read_array(cursor, key, texts)
    return _read_scalars(cursor, key, kind, 1)[0]


def _read_scalars(cursor: _Cursor, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
    letter = _SCALARS.get(kind)
    if letter is None:
        raise _DamagedError(f"the value of {key[:80]!r} has the unknown type {kind}")
    layout = struct.Struct(f"<{count}{letter}")
    cursor.keep(16 * count)
    return layout.unpack(cursor.take(layout.size))


def _read_array(cursor: _Cursor, key: str, texts: dict[str, tuple[bytes, ...]] | None) -> MetaValue:
    kind, count = cursor.u32(), cursor.u64()
    if kind == _TEXT:
        # Each text takes at least the 8 bytes of its length.
        if count > cursor.left // 8:
            raise _DamagedError(f"the list {key[:80]!r} claims {count} texts, more than the file holds")
        if texts is not None:
            texts[key] = cursor.texts(count)
        else:
            cursor.skip_texts(count)
        return Passed("string", count)
    if kind == _ARRAY:
        raise _DamagedError(f"the value of {key[:80]!r} is a list of lists, which no engine reads")
    if count <= _KEPT_ARRAY:
        return _read_scalars(cursor, key, kind, count)
    letter = _SCALARS.get(kind)
    if letter is None:
        raise _DamagedError(f"the list {key[:80]!r} has the unknown type {kind}")
    cursor.skip(count * struct.calcsize(f"<{letter}"))
    return Passed(_TYPE_NAMES[kind], count)


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.name()
    dimensions = cursor.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _DamagedError(f"the tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))
    number, offset = cursor.u32(), cursor.u64()
    elements = 1
    for length in shape:
        elements *= length
        if elements > _MAX_ELEMENTS:
            raise _DamagedError(f"the tensor {name[:80]!r} has an absurd shape")
    kind = TENSOR_TYPES.get(number)
    cursor.keep(8 * dimensions)
    if kind is None:
        return TensorInfo(name, shape, f"type {number}", offset, elements, None)
    return TensorInfo(name, shape, kind.name, offset, elements, _tensor_bytes(name, kind, shape, elements))


def _tensor_bytes(name: str, kind: TensorType, shape: tuple[int, ...], elements: int) -> int:
    if shape[0] % kind.block:
        raise _DamagedError(f"the rows of the tensor {name[:80]!r} are no multiple of {kind.block} ({kind.name})")
    return kind.bytes_of(elements)


def _check_extent(header: GgufHeader) -> None:
    """Does the file hold all that its tensors need?"""
    ends = [info.offset + (info.size_bytes or 0) for info in header.tensors]
    needed = header.data_offset + max(ends, default=0)
    if ends and needed > header.file_bytes:
        raise _DamagedError(
            f"it is cut off: its tensors need {render_bytes(needed)}, the file has {render_bytes(header.file_bytes)}"
        )
