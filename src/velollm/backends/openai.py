"""Any server with OpenAI's `/v1` interface (vLLM, LocalAI, LM Studio, llama-server), measured as it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.backends.openai_http import OpenAiServer
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Knobs


class OpenAiBackend(Backend):
    """The server at ``url``. It has no knobs: nothing of it is set, started or stopped."""

    name = "openai"
    knobs: frozenset[str] = frozenset()

    def __init__(self, url: str = "") -> None:
        self.url = url

    def at(self, url: str) -> Backend:
        return OpenAiBackend(url)

    def missing(self) -> str | None:
        return None if self.url else "no server is named: add --url http://127.0.0.1:PORT/v1"

    def find_model(self, name: str) -> ModelRef:
        names = self.list_models()
        if name not in names:
            known = ", ".join(names) or "none"
            raise VeloError(f"the server at {self.url} has no model '{name}'", f"it has: {known}")
        return ModelRef(name, None)

    def list_models(self) -> tuple[str, ...]:
        """What the server offers. Raises `VeloError` where it does not answer."""
        with contextlib.closing(self._server("")) as server:
            return server.models()

    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        return ()

    @contextlib.contextmanager
    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> Iterator[RunningServer]:
        """The server itself: a private one cannot be started by its address."""
        with contextlib.closing(self._server(model.name)) as server:
            yield server

    def _server(self, model: str) -> OpenAiServer:
        # The key goes only to the address that the user named.
        return OpenAiServer(self.url, model, api_key=os.environ.get("OPENAI_API_KEY") or None)


backend = OpenAiBackend()
