"""Installed models as `/api/show` tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared_dir
from velollm.probe.ollama_installed import parse_gguf_kind, parse_installed

BLOB = "blobs/sha256-" + "a" * 64


def recorded(name: str) -> dict[str, Any]:
    path = shared_dir("ollama") / "0.33.0-rc2" / "exchanges" / f"{name}.json"
    response = json.loads(path.read_text(encoding="utf-8"))["response"]
    body = response.get("body") or "".join(chunk["data"] for chunk in response["chunks"])
    found: dict[str, Any] = json.loads(body) if isinstance(body, str) else body
    return found


def test_a_recorded_model_with_parameters() -> None:
    found = parse_installed("a", recorded("show-derived"))
    assert found.parameters == (("num_batch", "256"), ("num_ctx", "1024"), ("temperature", "0.2"))
    assert found.blob is not None
    assert found.draft is None


def test_a_recorded_model_with_a_draft_that_is_not_here() -> None:
    found = parse_installed("a", recorded("show-drafted"))
    assert found.draft is not None
    assert found.draft.endswith("5a7498b6a9de6c693257ddf906775cf606de3abf6c0e24b2cd1a7eea6079ea61")
    assert (found.draft_kind, found.draft_has_mtp) == (None, None)


def test_the_drafts_own_header_is_read(tmp_path: Path) -> None:
    draft = shared_dir("models") / "tiny-python-draft-f16.gguf"
    place = tmp_path / BLOB
    place.parent.mkdir()
    place.write_bytes(draft.read_bytes())
    shown = {"modelfile": f"FROM {tmp_path}/{BLOB}\nDRAFT {place}\n", "parameters": 'num_ctx "many"'}
    found = parse_installed("a", shown)
    assert (found.draft_kind, found.draft_has_mtp) == ("llama", False)
    assert found.file_bytes == draft.stat().st_size
    assert found.parameters == (("num_ctx", '"many"'),)


def header(*pairs: tuple[str, str]) -> bytes:
    found = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + len(pairs).to_bytes(8, "little")
    for key, value in pairs:
        for text in (key, value):
            found += len(text).to_bytes(8, "little") + text.encode()
            found += (8).to_bytes(4, "little") if text is key else b""
    return found


@pytest.mark.parametrize(
    ("head", "kind", "has_mtp"),
    [
        (header(("general.name", "x"), ("general.architecture", "dflash")), "dflash", False),
        (header(("general.architecture", "glm4moe"), ("glm4moe.nextn_predict_layers", "1")), "glm4moe", True),
        (b"GGUF", None, False),
        (b"PK\x03\x04 general.architecture", None, False),
        (header(("general.architecture", "llama"))[:-2], None, False),
    ],
)
def test_kinds_of_files(head: bytes, kind: str | None, has_mtp: bool) -> None:
    assert parse_gguf_kind(head) == (kind, has_mtp)


@given(st.binary(max_size=200))
def test_any_file_is_read(data: bytes) -> None:
    parse_gguf_kind(b"GGUF" + data)
    parse_gguf_kind(b"GGUFgeneral.architecture" + data)


def test_an_answer_without_anything() -> None:
    found = parse_installed("a", {})
    assert (found.blob, found.parameters, found.draft) == (None, (), None)
