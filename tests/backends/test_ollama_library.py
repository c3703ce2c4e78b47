"""The question to the library's registry, asked of one on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from velollm.backends.ollama_library import is_in_library

HELD = {"/v2/library/llama3.1/manifests/8b", "/v2/library/gemma3/manifests/latest", "/v2/me/own/manifests/q8_0"}


class Registry(BaseHTTPRequestHandler):
    """Answers for what it holds, with an error for one name."""

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        assert "docker.distribution.manifest.v2" in self.headers["Accept"]
        status = 200 if self.path in HELD else 503 if "broken" in self.path else 404
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("llama3.1:8b", True),
        ("gemma3", True),
        ("me/own:q8_0", True),
        ("llama3.1:9b", False),
        ("no such name", False),
        ("broken:1b", None),
    ],
)
def test_what_the_registry_holds(name: str, there: bool | None, registry: str) -> None:
    assert is_in_library(name, registry) is there


def test_a_registry_out_of_reach_denies_nothing() -> None:
    assert is_in_library("llama3.1:8b", "http://127.0.0.1:1") is None
