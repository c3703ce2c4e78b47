"""A small registry on loopback: manifests and blobs, in ranges, as Ollama and we ask for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL_LAYER = "application/vnd.ollama.image.model"


@dataclass
class FakeRegistry:
    """What it holds, and what it was asked: (method, path, range). ``ranges`` False: it gives whole files alone.

    As at the real one, blobs lie on another host: Ollama wants to be sent there (server/download.go:231-270).
    """

    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    ranges: bool = True
    sent_bytes: int = 0
    address: str = ""

    def add(self, name: str, weights: bytes, *, media_type: str = MODEL_LAYER, claimed_bytes: int = 0) -> str:
        """Publish a file under ``library/NAME:TAG``; the full name that a person would type."""
        model, _, tag = name.partition(":")
        config = json.dumps({"model_format": "gguf", "model_family": "llama", "model_type": "1M"}).encode()
        layers = [{"mediaType": media_type, "digest": self._keep(weights), "size": claimed_bytes or len(weights)}]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": self._keep(config),
                "size": len(config),
            },
            "layers": layers,
        }
        self.manifests[f"/v2/library/{model}/manifests/{tag or 'latest'}"] = json.dumps(manifest).encode()
        return f"http://{self.address}/library/{name}"

    def _keep(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry

    def log_message(self, *_: object) -> None:
        """Tests read ``asked`` instead."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range")
        self.registry.asked.append((self.command, self.path, wanted))
        if (manifest := self.registry.manifests.get(self.path)) is not None:
            return self._send(200, manifest, body)
        blob = self.registry.blobs.get(self.path.rpartition("/")[2])
        if blob is None:
            return self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', body)
        if self.path.startswith("/v2/"):
            port = self.registry.address.rpartition(":")[2]
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{port}/store/{self.path.rpartition('/')[2]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if match is None or not self.registry.ranges:
            return self._send(200, blob, body)
        return self._send(206, blob[int(match.group(1)) : int(match.group(2)) + 1], body)

    def _send(self, status: int, data: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.registry.sent_bytes += len(data)
            self.wfile.write(data)


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry that listens until the context is left."""
    registry = FakeRegistry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
