"""Installed models as an Ollama server shows them: their files, parameters and drafts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velollm.backends.ollama_find import blob_of
from velollm.facts import InstalledModelFacts
from velollm.targets.ollama_model import parse_parameters

_DRAFT = re.compile(r"^DRAFT (.+[/\\]blobs[/\\]sha256-[0-9a-f]{64})\s*$", re.MULTILINE)
_HEADER_BYTES = 32 * 1024 * 1024
_ARCHITECTURE = b"general.architecture"
_STRING_TYPE = 8  # GGUF_TYPE_STRING (ggml/include/gguf.h)
# Names by which Ollama finds layers for multi-token prediction (llm/llama_server.go:837-851).
_MTP = (b"nextn_predict_layers", b"mtp.", b".nextn.")


def parse_installed(name: str, shown: Mapping[str, Any]) -> InstalledModelFacts:
    """One model from the server's answer to `/api/show`; its files are looked at where they can be read."""
    modelfile = str(shown.get("modelfile") or "")
    blob = blob_of(modelfile)
    draft = _DRAFT.search(modelfile)
    path = draft.group(1).strip('"') if draft else None
    kind, has_mtp = _read_draft(path) if path else (None, None)
    return InstalledModelFacts(
        name=name,
        blob=str(blob) if blob else None,
        file_bytes=_size(blob) if blob else None,
        parameters=tuple((key, value) for key, value in parse_parameters(str(shown.get("parameters") or ""))),
        draft=path,
        draft_kind=kind,
        draft_has_mtp=has_mtp,
    )


def parse_gguf_kind(head: bytes) -> tuple[str | None, bool]:
    """Architecture of a GGUF file, and whether anything of it is named for multi-token prediction.

    ``head`` is the file's beginning: 4 bytes ``GGUF``, then keys, each a length (8 bytes), a name, a type (4 bytes) and
    a value (llama.cpp ggml/include/gguf.h).
    """
    at = head.find(_ARCHITECTURE)
    if head[:4] != b"GGUF" or at < 0:
        return None, False
    at += len(_ARCHITECTURE)
    kind, length = int.from_bytes(head[at : at + 4], "little"), int.from_bytes(head[at + 4 : at + 12], "little")
    name = head[at + 12 : at + 12 + length]
    known = kind == _STRING_TYPE and 0 < length <= 64 and len(name) == length
    return (name.decode("utf-8", "replace") if known else None), any(mark in head for mark in _MTP)


def _read_draft(path: str) -> tuple[str | None, bool | None]:
    try:
        with Path(path).open("rb") as file:
            kind, has_mtp = parse_gguf_kind(file.read(_HEADER_BYTES))
    except OSError:
        return None, None
    return kind, has_mtp if kind is not None else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
