"""The registry that Ollama pulls from: a model's manifest, and the head of its weights before any download.

Addresses: Ollama v0.33.0-rc2 server/images.go:977 (``/v2/NAMESPACE/MODEL/manifests/TAG``) and server/download.go:506
(``/v2/NAMESPACE/MODEL/blobs/DIGEST``, which may lead elsewhere); names as types/model/name.go reads them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import httpx

from velollm.backends.ollama_find import is_local
from velollm.backends.ollama_store import MANIFEST_TYPE, MODEL_LAYER, ModelName, parse_model_name
from velollm.errors import UsageError, VeloError

_CONNECT_S = 10.0
_READ_S = 60.0
_MANIFEST_LIMIT_BYTES = 4 * 1024 * 1024
# What one request brings: a header with its vocabulary has 2 to 20 MiB.
_PIECE_BYTES = 2 * 1024 * 1024
_NO_NETWORK = "connect to a network and try again"


@dataclass(frozen=True)
class RemoteModel:
    """A model as its registry has it. ``weights_bytes``: the GGUF file; ``total_bytes``: all that a pull brings."""

    name: str
    weights_url: str
    digest: str
    weights_bytes: int
    total_bytes: int


def split_name(text: str) -> tuple[str, ModelName]:
    """Scheme and full name of what a person types: ``qwen2.5:0.5b``, ``http://127.0.0.1:5000/library/made:1``.

    Raises:
        UsageError: it is no name of a model.
    """
    scheme, found, rest = text.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if found else ("https", text.strip())
    name = parse_model_name(rest)
    if name is None or scheme not in ("http", "https"):
        raise UsageError(f"'{text}' is no name of a model", "names look like qwen2.5:0.5b or hf.co/OWNER/MODEL:TAG")
    return scheme, name


def local_name(text: str) -> str:
    """What Ollama calls such a model once it is pulled (`DisplayShortest`, types/model/name.go:267)."""
    _, name = split_name(text)
    short = f"{name.model}:{name.tag}"
    if name.host.lower() != "registry.ollama.ai":
        return f"{name.host}/{name.namespace}/{short}"
    return short if name.namespace.lower() == "library" else f"{name.namespace}/{short}"


def is_insecure(text: str) -> bool:
    """Did the person write ``http://``, which Ollama takes only when it is told so?"""
    return text.strip().lower().startswith("http://")


class Registry:
    """Registries, asked without an account: public models only.

    Ollama itself asks the network by its own environment; we by ours.
    """

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = transport
        self._clients: dict[bool, httpx.Client] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def find(self, text: str) -> RemoteModel:
        """The model of that name.

        Raises:
            UsageError: it is no name.
            VeloError: the registry cannot be reached, has no such model, or its answer is none.
        """
        scheme, name = split_name(text)
        base = f"{scheme}://{name.host}{name.registry_path}"
        reply = self._get(f"{base}/manifests/{name.tag}", name.host)
        if reply.status_code == 404:
            raise VeloError(f"{name.host} has no model '{text}'", "see the model's tags at its library's site")
        if reply.status_code != 200 or len(reply.content) > _MANIFEST_LIMIT_BYTES:
            raise VeloError(f"{name.host} does not give {text}: HTTP {reply.status_code}", "try again later")
        return parse_remote(reply.text, text, base)

    def open_head(self, model: RemoteModel) -> RemoteFile:
        """The weights' file, to be read from its beginning piece by piece."""
        return RemoteFile(self._client(model.weights_url), model.weights_url, model.weights_bytes)

    def _get(self, url: str, host: str) -> httpx.Response:
        try:
            return self._client(url).get(url)
        except httpx.HTTPError as error:
            raise VeloError(f"{host} cannot be reached: {error or type(error).__name__}", _NO_NETWORK) from error

    def _client(self, url: str) -> httpx.Client:
        local = is_local(url)
        if local not in self._clients:
            # A proxy is for what lies outside, never for this machine.
            self._clients[local] = httpx.Client(
                trust_env=not local,
                follow_redirects=True,
                timeout=httpx.Timeout(_CONNECT_S, read=_READ_S),
                transport=self._transport,
                headers={"Accept": MANIFEST_TYPE},
            )
        return self._clients[local]


def parse_remote(text: str, name: str, base: str) -> RemoteModel:
    """A manifest. ``base``: address of the model at its registry.

    Raises:
        VeloError: it is no manifest, or of a model without a GGUF file.
    """
    layers: list[dict[str, Any]] = []
    try:
        data = json.loads(text)
        layers = [layer for layer in [*data["layers"], data.get("config")] if isinstance(layer, dict)]
        weights = next((layer for layer in layers if layer.get("mediaType") == MODEL_LAYER), None)
        if weights is None:
            raise VeloError(f"{name} has no GGUF file", "a model in another format cannot draft in llama.cpp")
        digest, size = str(weights["digest"]), int(weights["size"])
        total = sum(int(layer["size"]) for layer in layers)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VeloError(f"the registry's answer for {name} is no manifest", "try again later") from error
    return RemoteModel(name, f"{base}/blobs/{digest}", digest, size, total)


class RemoteFile(io.RawIOBase):
    """A file at a registry, read by ranges: seekable, and only what is read is loaded. ``loaded_bytes`` counts it."""

    def __init__(self, client: httpx.Client, url: str, size: int) -> None:
        super().__init__()
        self._client, self._url, self._size = client, url, size
        self._at = 0
        self._start, self._piece = 0, b""
        self.loaded_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Whence 0 and 2 count from the beginning and the end."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Up to so many bytes.

        Raises:
            OSError: the registry cannot be reached, or gives no ranges.
        """
        size = self._size - self._at if size < 0 else min(size, self._size - self._at)
        if size <= 0:
            return b""
        if not self._start <= self._at < self._start + len(self._piece):
            self._load()
        offset = self._at - self._start
        part = self._piece[offset : offset + size]
        self._at += len(part)
        return part

    def _load(self) -> None:
        last = min(self._size, self._at + _PIECE_BYTES) - 1
        try:
            with self._client.stream("GET", self._url, headers={"Range": f"bytes={self._at}-{last}"}) as reply:
                if reply.status_code != 206:
                    raise OSError(f"HTTP {reply.status_code} where a part of the file was asked for")
                self._piece, self._start = reply.read(), self._at
                self._url = str(reply.url)
        except httpx.HTTPError as error:
            raise OSError(str(error) or type(error).__name__) from error
        if not self._piece:
            raise OSError("an empty part")
        self.loaded_bytes += len(self._piece)
