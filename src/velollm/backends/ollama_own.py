"""A model store of VeloLLM's own, for private servers: one GGUF file under the name of a user's model.

`/api/create` would copy the whole file through `llama-quantize`, which takes the disk and the time twice, so the
manifest and its small layers are written here: Ollama v0.33.0-rc2, server/create.go:765-771 (the copy) and 1309-1400
(layers), manifest/manifest.go (`WriteManifest`), types/model/config.go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from velollm.backends.ollama_store import MANIFEST_TYPE, MODEL_LAYER, parse_model_name
from velollm.errors import VeloError

_CONFIG = "application/vnd.docker.container.image.v1+json"
_PARAMETERS_LAYER = "application/vnd.ollama.image.params"
_PIECE_BYTES = 4 * 1024 * 1024
_HINT = "free some disk space, or set VELOLLM_HOME to a directory that you may write to"

Progress = Callable[[int, int], None]


def take_blob(store: Path, file: Path, progress: Progress) -> Path:
    """Move a file into the store, under its digest; where it is then. ``progress`` is told bytes read and in all.

    Raises:
        VeloError: it cannot be read or moved.
    """
    try:
        total, done, digest = file.stat().st_size, 0, hashlib.sha256()
        with file.open("rb", buffering=0) as source:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                done += len(piece)
                progress(done, total)
        blobs = store / "blobs"
        blobs.mkdir(exist_ok=True)
        return file.rename(blobs / f"sha256-{digest.hexdigest()}")
    except OSError as error:
        raise VeloError(f"cannot put a model into {store}: {error.strerror or error}", _HINT) from error


def write_manifest(
    store: Path, name: str, blob: Path, *, details: Mapping[str, object], parameters: Mapping[str, object]
) -> None:
    """Give a blob of the store a name, with what the user's server shows of the model of that name.

    ``details`` is that part of `/api/show`. There is no template: a trial sends raw prompts, and what `/api/show` names
    as one may be that of the real file, in another language (server/routes.go:1623).

    Raises:
        VeloError: it is no name of a model, or the store cannot be written.
    """
    full = parse_model_name(name)
    if full is None:
        raise VeloError(f"'{name}' is no name of a model", "`ollama list` names the installed ones")
    config = {
        "model_format": "gguf",
        "model_family": details.get("family", ""),
        "model_families": details.get("families"),
        "model_type": details.get("parameter_size", ""),
        "file_type": details.get("quantization_level", ""),
        "architecture": "amd64",
        "os": "linux",
    }
    weights = {"mediaType": MODEL_LAYER, "digest": blob.name.replace("-", ":"), "size": blob.stat().st_size}
    try:
        layers = [weights]
        if parameters:
            layers.append(_layer(store, _PARAMETERS_LAYER, _json(parameters)))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _layer(store, _CONFIG, _json(config)),
            "layers": layers,
        }
        path = store / full.manifest_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_json(manifest))
    except OSError as error:
        raise VeloError(f"cannot write the model store {store}: {error.strerror or error}", _HINT) from error


def _layer(store: Path, media_type: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
