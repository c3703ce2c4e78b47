"""Get a model into Ollama: pull it, or make it of one with 16-bit weights that is there.

Streams of `/api/pull` and `/api/create`: Ollama v0.33.0-rc2, api/types.go (ProgressResponse), server/create.go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import httpx

from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError
from velollm.errors import VeloError

# Formats that `/api/create` makes (server/quantization.go); it takes 16 and 32 bits as input.
MAKES = ("q8_0", "q4_K_M", "q4_K_S")
_CONNECT_S = 5.0
# Between two lines of a stream: verifying a large file says nothing for minutes.
_SILENCE_S = 900.0
_OFFLINE = ("no such host", "dial tcp", "connection refused", "network is unreachable", "i/o timeout", "tls:")
_ABSENT = ("file does not exist", "not found", "manifest unknown")

Report = Callable[[str, float | None], None]
"""Told the step, and how much of it is done (0 to 1; None where that is not known)."""


def pull_model(api: OllamaApi, name: str, report: Report, *, insecure: bool = False) -> None:
    """Download a model of a registry. What was loaded so far is kept when it breaks off.

    ``insecure``: over plain HTTP, which Ollama does only when told.

    Raises:
        VeloError: no network, no such model, or the server refuses.
    """
    _follow(api, "/api/pull", {"model": name} | ({"insecure": True} if insecure else {}), report, name)


def quantize_model(api: OllamaApi, name: str, source: str, form: str, report: Report) -> None:
    """Make ``name`` of the installed ``source`` in another format.

    Raises:
        VeloError: the source has no 16-bit weights, the format is none of `MAKES`, or the server refuses.
    """
    if form not in MAKES:
        raise VeloError(f"Ollama cannot make {form}", f"it makes {', '.join(MAKES)}")
    _follow(api, "/api/create", {"model": name, "from": source, "quantize": form.upper()}, report, name)


def _follow(api: OllamaApi, path: str, body: Mapping[str, object], report: Report, name: str) -> None:
    """Read the stream to its end; only ``success`` as the last status is one."""
    last = ""
    timeout = httpx.Timeout(_CONNECT_S, read=_SILENCE_S)
    try:
        with api.client.stream("POST", path, json=body, timeout=timeout) as reply:
            if reply.status_code >= 400:
                raise OllamaRefusalError(reply.status_code, _reason(reply.read().decode("utf-8", "replace")))
            for line in _objects(reply.iter_lines()):
                if "error" in line:
                    raise _failure(name, str(line["error"]))
                last = str(line.get("status", last))
                report(last, _done(line))
    except httpx.HTTPError as error:
        raise VeloError(
            f"the Ollama server at {api.url} broke off: {error or type(error).__name__}",
            "see its log; the same command goes on where it stopped",
        ) from error
    if last != "success":
        raise VeloError(f"the Ollama server at {api.url} ended without success: {last or 'nothing'}", "see its log")


def _objects(lines: Iterator[str]) -> Iterator[dict[str, object]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict):
            yield data


def _done(line: Mapping[str, object]) -> float | None:
    completed, total = line.get("completed"), line.get("total")
    if isinstance(completed, int) and isinstance(total, int) and total > 0:
        return min(1.0, completed / total)
    return None


def _reason(text: str) -> str:
    try:
        data = json.loads(text)
    except ValueError:
        return text.strip()[:200] or "no reason"
    return str(data.get("error", text)) if isinstance(data, dict) else text[:200]


def _failure(name: str, reason: str) -> VeloError:
    """The server's reason in a person's words: without network, without such a model, else as it is."""
    lowered = reason.lower()
    if any(word in lowered for word in _OFFLINE):
        return VeloError(
            f"Ollama cannot reach its library to get {name}: {reason}", "connect to a network and try again"
        )
    if any(word in lowered for word in _ABSENT):
        return VeloError(f"the Ollama library has no {name}: {reason}", "see the model's tags on ollama.com")
    if "no space left" in lowered:
        return VeloError(f"the disk is full: {reason}", "free some disk space and try again; what was loaded is kept")
    return VeloError(f"Ollama did not get {name}: {reason}", "see the server's log")
