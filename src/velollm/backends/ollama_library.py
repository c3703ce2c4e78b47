"""Ollama's library: is a model there? Asked of the registry as `ollama pull` asks it.

The request: Ollama v0.33.0-rc2, server/images.go:1272 (`pullModelManifest`).
"""

from __future__ import annotations

import httpx

from velollm.backends.ollama_store import MANIFEST_TYPE, parse_model_name

_TIMEOUT_S = 3.0


def is_in_library(name: str, registry: str | None = None) -> bool | None:
    """Does the registry of that name have the model? None where it cannot be asked, or answers anything else.

    ``registry``: its address, else that which the name means. Proxies of the environment are used, as Ollama does.
    """
    full = parse_model_name(name)
    if full is None:
        return False
    path = f"{full.registry_path}/manifests/{full.tag}"
    try:
        with httpx.stream(
            "GET", (registry or f"https://{full.host}") + path, headers={"Accept": MANIFEST_TYPE}, timeout=_TIMEOUT_S
        ) as reply:
            return {200: True, 404: False}.get(reply.status_code)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
