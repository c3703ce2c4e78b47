"""Known regressions of the Ollama that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from velollm.config import data_dir
from velollm.doctor.base import Check, Finding, evidence
from velollm.doctor.mend import update
from velollm.facts import Facts, ServerFacts

_NAME = "ollama-regressions"
_WHY = "a newer version of Ollama does not have it"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds known regressions of the Ollama that runs, which a newer version has mended.

    The list is `configs/ollama-regressions.yaml`. What concerns one system, GPU or model only is left out
    elsewhere, and where that is unknown.
    """
    server = facts.server
    version = _version(server.version) if server is not None and server.engine == "ollama" else None
    if server is None or version is None:
        return
    for entry in _regressions():
        if not _number(entry["first"]) <= version < _number(entry["fixed"]) or not _concerns(entry, facts, server):
            continue
        seen = (
            evidence(facts, "server.version", f"Ollama {server.version}"),
            evidence(facts, "", entry["issue"], "known since " + entry["first"]),
        )
        title = f"{entry['what']}: known of Ollama {entry['first']}, mended in {entry['fixed']}"
        yield Finding(_NAME, entry["severity"], title, seen, update(facts, server), _WHY)


@cache
def _regressions() -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = yaml.safe_load(
        (data_dir("configs") / "ollama-regressions.yaml").read_text(encoding="utf-8")
    )
    return found


def _version(text: str | None) -> tuple[int, ...] | None:
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text or "")
    found = tuple(int(number) for number in match.groups()) if match else None
    return found if found != (0, 0, 0) else None


def _number(text: str) -> tuple[int, ...]:
    return _version(text) or ()


def _concerns(entry: Mapping[str, Any], facts: Facts, server: ServerFacts) -> bool:
    if "os" in entry and facts.os != entry["os"]:
        return False
    if "gpu" in entry and not any(gpu.vendor == entry["gpu"] for gpu in facts.gpus or ()):
        return False
    if "models" in entry and not any(entry["models"] in name for name in server.installed or ()):
        return False
    if entry.get("offload") == "partly":
        placed, total = server.gpu_layers, server.total_layers
        return placed is not None and total is not None and 0 < placed < total
    return True


check = Check(_NAME, "Known regressions of this version", "warning", True, run)
