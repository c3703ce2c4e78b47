"""The registry as we ask it: names, manifests, and the head of a file in parts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_registry import FakeRegistry, fake_registry
from velollm.backends.ollama_registry import (
    Registry,
    is_insecure,
    local_name,
    parse_remote,
    split_name,
)
from velollm.errors import UsageError, VeloError

WEIGHTS = bytes(range(256)) * 20_000  # three parts


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as found:
        yield found


@pytest.fixture
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("text", "host", "local"),
    [
        ("qwen2.5:0.5b", "registry.ollama.ai", "qwen2.5:0.5b"),
        ("qwen2.5", "registry.ollama.ai", "qwen2.5:latest"),
        ("someone/thing:2", "registry.ollama.ai", "someone/thing:2"),
        ("hf.co/owner/model:Q8_0", "hf.co", "hf.co/owner/model:Q8_0"),
        ("http://127.0.0.1:5000/library/made:1", "127.0.0.1:5000", "127.0.0.1:5000/library/made:1"),
        ("https://registry.ollama.ai/library/x:y", "registry.ollama.ai", "x:y"),
    ],
)
def test_a_name_has_a_host_and_what_ollama_calls_it(text: str, host: str, local: str) -> None:
    assert split_name(text)[1].host == host
    assert local_name(text) == local
    assert is_insecure(text) == text.startswith("http:")


@pytest.mark.parametrize("text", ["", "a b", "ftp://host/library/x", "a/b/c/d:e", "x:", "http://"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no name of a model"):
        split_name(text)


def test_a_model_is_found_with_its_sizes(server: FakeRegistry, registry: Registry) -> None:
    found = registry.find(server.add("made:1", WEIGHTS))
    assert found.weights_bytes == len(WEIGHTS)
    assert found.weights_bytes < found.total_bytes < found.weights_bytes + 1000
    assert server.sent_bytes < 2000


def test_a_file_is_read_in_parts_and_only_as_far_as_asked(server: FakeRegistry, registry: Registry) -> None:
    found = registry.find(server.add("made:1", WEIGHTS))
    file = registry.open_head(found)
    assert file.seek(0, io.SEEK_END) == len(WEIGHTS)
    assert file.seek(0) == 0
    assert file.read(10) == WEIGHTS[:10]
    assert file.read(300) == WEIGHTS[10:310]
    parts = [asked for _, path, asked in server.asked if asked and path.startswith("/store/")]
    assert len(parts) == 1
    file.seek(len(WEIGHTS) - 5)
    assert file.read() == WEIGHTS[-5:]
    assert file.read(1) == b""
    assert server.sent_bytes < len(WEIGHTS)


def test_a_registry_without_parts_says_so_and_sends_no_file(server: FakeRegistry, registry: Registry) -> None:
    server.ranges = False
    file = registry.open_head(registry.find(server.add("made:1", WEIGHTS)))
    with pytest.raises(OSError, match="HTTP 200 where a part"):
        file.read(4)


def test_what_is_not_there_or_cannot_be_reached(server: FakeRegistry, registry: Registry) -> None:
    name = server.add("made:1", WEIGHTS)
    with pytest.raises(VeloError, match="has no model"):
        registry.find(name.replace("made", "other"))
    with pytest.raises(VeloError, match="cannot be reached"):
        registry.find("http://127.0.0.1:9/library/x:1")
    server.manifests = dict.fromkeys(server.manifests, b"<html>")
    with pytest.raises(VeloError, match="is no manifest"):
        registry.find(name)


def test_a_refusal_is_told() -> None:
    registry = Registry(httpx.MockTransport(lambda _: httpx.Response(429, text="slow down")))
    with pytest.raises(VeloError, match="HTTP 429"):
        registry.find("qwen2.5:0.5b")
    registry.close()


def test_a_model_without_a_gguf_file_is_no_draft(server: FakeRegistry, registry: Registry) -> None:
    name = server.add("tensors:1", b"x", media_type="application/vnd.ollama.image.tensor")
    with pytest.raises(VeloError, match="has no GGUF file"):
        registry.find(name)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["layers", "config", "size", "digest", "mediaType"]), x), max_leaves=12))  # fmt: skip
def test_any_json_is_a_manifest_or_an_error(value: object) -> None:
    try:
        parse_remote(json.dumps(value), "x", "http://host")
    except VeloError:
        return
    raise AssertionError("such a manifest holds no weights")
