"""Ollama's store on disk: from a model's name to its manifest and its GGUF blob.

Layout and defaults: Ollama v0.33.0-rc2, types/model/name.go and manifest/paths.go.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL_LAYER = "application/vnd.ollama.image.model"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
PROJECTOR_LAYER = "application/vnd.ollama.image.projector"
_DIGEST = re.compile(r"^sha256[:-]([0-9a-f]{64})$")
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$")
_MANIFEST_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ModelName:
    """A full model name: ``registry.ollama.ai/library/llama3:latest`` in its four parts."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies under the models directory."""
        return Path("manifests", self.host, self.namespace, self.model, self.tag)

    @property
    def registry_path(self) -> str:
        """Where the model lies at its registry: its manifests and blobs are below (server/images.go:977)."""
        return f"/v2/{self.namespace}/{self.model}"


def parse_model_name(text: str) -> ModelName | None:
    """The full name behind a short one; None where the text is no model name."""
    path, _, tag = text.strip().rpartition(":") if ":" in text.rsplit("/", 1)[-1] else (text.strip(), "", "latest")
    parts = path.split("/")
    if not 1 <= len(parts) <= 3 or not all(_PART.match(part) for part in (*parts, tag)):
        return None
    host, namespace, model = ["registry.ollama.ai", "library", ""][: 3 - len(parts)] + parts
    return ModelName(host, namespace, model, tag)


def parse_manifest(text: str, media_type: str = MODEL_LAYER) -> str | None:
    """Digest (64 hexadecimal digits) of the manifest's first layer of that type; None where there is none."""
    try:
        data = json.loads(text)
        layers = data["layers"]
        found = next(layer["digest"] for layer in layers if layer["mediaType"] == media_type)
        match = _DIGEST.match(found)
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None
    return match.group(1) if match else None


def find_ollama_blob(name: str, models_dir: Path, media_type: str = MODEL_LAYER) -> Path | None:
    """The GGUF file of an installed model under ``models_dir``; None where it is not there or cannot be read."""
    full = parse_model_name(name)
    if full is None:
        return None
    try:
        with (models_dir / full.manifest_path).open("rb") as file:
            text = file.read(_MANIFEST_LIMIT_BYTES).decode("utf-8", "replace")
        digest = parse_manifest(text, media_type)
        blob = models_dir / "blobs" / f"sha256-{digest}"
        return blob if digest and blob.is_file() else None
    except OSError:
        return None


def installed_models(models_dir: Path) -> Iterator[tuple[str, Path]]:
    """(name, GGUF file) of every model under ``models_dir`` that can be read, in order of name."""
    root = models_dir / "manifests"
    try:
        manifests = sorted(root.glob("*/*/*/*"))
    except OSError:
        return
    for manifest in manifests:
        host, namespace, model, tag = manifest.relative_to(root).parts
        full = f"{host}/{namespace}/{model}:{tag}"
        if (blob := find_ollama_blob(full, models_dir)) is not None:
            yield full.removeprefix("registry.ollama.ai/").removeprefix("library/"), blob


def default_model_dirs(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Places where Ollama keeps models, likelier first: OLLAMA_MODELS, the user's own, the Linux service's."""
    places = [Path(environ["OLLAMA_MODELS"])] if environ.get("OLLAMA_MODELS") else []
    places.append(home / ".ollama" / "models")
    if sys.platform == "linux":
        places.append(Path("/usr/share/ollama/.ollama/models"))
    return tuple(places)
