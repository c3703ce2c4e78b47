"""A fake Ollama on loopback: it answers with what a real one was recorded to say, over a model store in memory.

Names, parameters and digests follow what is asked of it; everything else comes from the recordings, which are read
where they lie.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.shared import shared_dir

Fault = Literal["killed mid-stream", "stream just ends", "queue full", "load fails", "load fails with a reason"]
MODEL = "tiny-python"
_FAULT_FILES: dict[Fault, str] = {
    "killed mid-stream": "fault-child-killed-mid-stream",
    "stream just ends": "fault-child-killed-mid-v1-stream",
    "queue full": "fault-queue-1",
    "load fails": "fault-env-bad-value",
    "load fails with a reason": "fault-kv-quantized-without-flash",
}
_LONG = 4096  # characters: the recorded prompt above the context had 15,000
_LATER = {"/api/generate": "generate-stream", "/api/chat": "chat-stream", "/v1/chat/completions": "v1-chat-stream"}
_WHOLE = {"/api/generate": "generate-nostream", "/api/chat": "chat-nostream", "/v1/chat/completions": "v1-chat"}


def recordings() -> Path:
    """The folder of the recorded exchanges; skips the test where it is absent."""
    return shared_dir("ollama") / "0.33.0-rc2"


def read_log(name: str) -> str:
    """A recorded server log."""
    return (recordings() / "logs" / f"{name}.log").read_text(encoding="utf-8")


@cache
def _read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def recorded(name: str, folder: str = "exchanges") -> dict[str, Any]:
    """The response of one recorded exchange: status, headers, and body or chunks."""
    response = copy.deepcopy(_read(recordings() / folder / f"{name}.json")["response"])
    assert isinstance(response, dict)
    return response


def recorded_lines(name: str, folder: str = "exchanges") -> list[str]:
    """The lines of one recorded stream."""
    return "".join(chunk["data"] for chunk in recorded(name, folder)["chunks"]).splitlines()


@dataclass(frozen=True)
class StoredModel:
    """A manifest: its weights, its parameters, and the digest that follows from both."""

    blob: str
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.blob, self.parameters)).encode()).hexdigest()


@dataclass
class FakeOllama:
    """What the fake holds, and what it was asked. ``faults`` are used up, one for each generation or load.

    ``refuse`` maps "METHOD /path" to a status: such calls fail and change nothing. ``library``: what can be pulled.
    ``files``: the GGUF files of models, by full name, where a test has some.
    """

    store: dict[str, StoredModel] = field(default_factory=lambda: {f"{MODEL}:latest": StoredModel("weights")})
    loaded: dict[str, datetime] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    library: set[str] = field(default_factory=set)
    files: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def digests(self) -> dict[str, str]:
        """Digest of each name, as `/api/tags` tells them."""
        return {name: model.digest for name, model in self.store.items()}

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests to one path, oldest first."""
        return [body for _, asked, body in self.requests if asked == path]

    def find(self, name: str) -> StoredModel | None:
        return self.store.get(_full(name))


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _text_of(value: object) -> str:
    return "<nil>" if value is None else json.dumps(value)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeOllama

    def log_message(self, *_: object) -> None:
        """Tests read ``requests`` instead."""

    def handle(self) -> None:
        # A client may leave in the middle of an answer.
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    def _route(self, method: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body: dict[str, Any] = json.loads(raw) if raw else {}
        with self.fake.lock:
            self.fake.requests.append((method, self.path, body))
            status = self.fake.refuse.get(f"{method} {self.path}")
        if status is not None:
            return self._send(status, {"error": "the fake was told to refuse"})
        route = self.path.removeprefix("/api/").replace("/", "_").lstrip("_")
        found = getattr(self, f"_{method.lower()}_{route}", None)
        if found is None:
            return self._send_text(404, recorded("unknown-route")["text"])
        found(body)
        return None

    def _send(self, status: int, body: object) -> None:
        self._send_text(status, "" if body is None else json.dumps(body))

    def _send_text(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, response: dict[str, Any]) -> None:
        self.send_response(response["status"])
        self.send_header("Content-Type", response["headers"]["content-type"])
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in response["chunks"]:
            data = chunk["data"].encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _replay(self, response: dict[str, Any]) -> None:
        if "chunks" in response:
            self._stream(response)
        else:
            self._send(response["status"], response.get("body"))

    def _missing(self, name: str) -> None:
        self._send(404, {"error": f"model '{name}' not found"})

    def _get_version(self, _: dict[str, Any]) -> None:
        self._replay(recorded("version"))

    def _get_tags(self, _: dict[str, Any]) -> None:
        template = recorded("tags")["body"]["models"][0]
        with self.fake.lock:
            stored = dict(self.fake.store)
        models = [{**template, "name": name, "model": name, "digest": model.digest} for name, model in stored.items()]
        self._send(200, {"models": models})

    def _get_ps(self, _: dict[str, Any]) -> None:
        template = recorded("ps-loaded")["body"]["models"][0]
        with self.fake.lock:
            loaded = dict(self.fake.loaded)
        models = [{**template, "name": n, "model": n, "expires_at": at.isoformat()} for n, at in loaded.items()]
        self._send(200, {"models": models})

    def _get_v1_models(self, _: dict[str, Any]) -> None:
        template = recorded("v1-models")["body"]["data"][0]
        with self.fake.lock:
            names = list(self.fake.store)
        self._send(200, {"object": "list", "data": [{**template, "id": name} for name in names]})

    def _post_show(self, body: dict[str, Any]) -> None:
        model = self.fake.find(body["model"])
        if model is None:
            return self._missing(_full(body["model"]))
        shown = recorded("show")["body"]
        if model.parameters:
            shown["parameters"] = "\n".join(f"{name:<30} {value}" for name, value in model.parameters)
        if (file := self.fake.files.get(_full(body["model"]))) is not None:
            shown["modelfile"] = f"FROM {file}\n"
        elif model.blob != "weights":
            old = shown["modelfile"].partition("sha256-")[2][:64]
            shown["modelfile"] = shown["modelfile"].replace(old, hashlib.sha256(model.blob.encode()).hexdigest())
        return self._send(200, shown)

    def _post_copy(self, body: dict[str, Any]) -> None:
        model = self.fake.find(body["source"])
        if model is None:
            return self._missing(body["source"])
        with self.fake.lock:
            self.fake.store[_full(body["destination"])] = model
        return self._send(200, None)

    def _delete_delete(self, body: dict[str, Any]) -> None:
        with self.fake.lock:
            gone = self.fake.store.pop(_full(body["model"]), None)
        return self._missing(body["model"]) if gone is None else self._send(200, None)

    def _post_create(self, body: dict[str, Any]) -> None:
        base = self.fake.find(body["from"])
        assert base is not None, "a real Ollama would now pull it"
        if "quantize" in body:
            with self.fake.lock:
                self.fake.store[_full(body["model"])] = StoredModel(f"{base.blob} {body['quantize']}", base.parameters)
            return self._replay(recorded("create-quantize-q8"))
        changes = {name: _text_of(value) for name, value in body.get("parameters", {}).items()}
        kept = [pair for pair in base.parameters if pair[0] not in changes]
        with self.fake.lock:
            model = StoredModel(base.blob, tuple(sorted([*kept, *changes.items()])))
            self.fake.store[_full(body["model"])] = model
        quiet = body.get("stream") is False
        return self._replay(recorded("create-derived-nostream" if quiet else "create-derived"))

    def _post_pull(self, body: dict[str, Any]) -> None:
        name = body["model"]
        if name not in self.fake.library or (name.startswith("http://") and not body.get("insecure")):
            return self._replay(recorded("pull-unreachable"))
        name = name.removeprefix("http://")
        with self.fake.lock:
            self.fake.store[_full(name)] = StoredModel(name)
        digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        lines += [
            {"status": f"pulling {digest[7:19]}", "digest": digest, "total": 100, "completed": n} for n in (50, 100)
        ]
        lines += [{"status": text} for text in ("verifying sha256 digest", "writing manifest", "success")]
        return self._stream({**recorded("pull-unreachable"), "chunks": [{"data": json.dumps(x) + "\n"} for x in lines]})

    def _post_generate(self, body: dict[str, Any]) -> None:
        self._generate(body, preload="prompt" not in body)

    def _post_chat(self, body: dict[str, Any]) -> None:
        self._generate(body, preload=not body.get("messages"))

    def _post_v1_chat_completions(self, body: dict[str, Any]) -> None:
        self._generate(body, preload=False)

    def _generate(self, body: dict[str, Any], *, preload: bool) -> None:
        if self.fake.find(body["model"]) is None:
            return self._replay(recorded("v1-no-model" if self.path.startswith("/v1") else "generate-no-model"))
        if preload and body.get("keep_alive") == 0:
            self.fake.loaded.pop(_full(body["model"]), None)
            return self._replay(recorded("unload"))
        with self.fake.lock:
            fault = self.fake.faults.pop(0) if self.fake.faults else None
        if fault is not None:
            return self._replay(recorded(_FAULT_FILES[fault], "faults"))
        self._keep(body)
        if preload:
            return self._replay(recorded("generate-preload-cold"))
        if len(body.get("prompt", "")) > _LONG:
            return self._replay(recorded("truncate-false" if body.get("truncate") is False else "truncated-silently"))
        streams = body.get("stream", not self.path.startswith("/v1"))
        return self._replay(recorded((_LATER if streams else _WHOLE)[self.path]))

    def _keep(self, body: dict[str, Any]) -> None:
        seconds = body.get("keep_alive", 300)
        with self.fake.lock:
            for_ever = timedelta(days=100000)
            stay = for_ever if seconds < 0 else timedelta(seconds=seconds)
            self.fake.loaded[_full(body["model"])] = datetime.now(UTC) + stay


@contextmanager
def fake_ollama(host: str = "127.0.0.1") -> Iterator[FakeOllama]:
    """A fake that listens until the context is left; 127.0.0.2 passes for another machine's address."""
    recordings()
    fake = FakeOllama()
    handler = type("Handler", (_Handler,), {"fake": fake})
    with ThreadingHTTPServer((host, 0), handler) as server:
        server.daemon_threads = True
        fake.url = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
