"""The shape of a projector of pictures, from the header of its file (an ``mmproj`` GGUF).

Keys and tensors: llama.cpp b10488, tools/mtmd/clip-impl.h; defaults by kind: ``load_hparams`` of tools/mtmd/clip.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from velollm.facts import ProjectorFacts
from velollm.models.header import GgufHeader, MetaValue, TensorInfo

# Kinds whose graph is known, with the patches a side that become one token where the file names none.
_MERGES = {"gemma3": 4, "qwen2vl_merger": 2, "qwen2.5vl_merger": 2, "qwen3vl_merger": 2}
_MERGE_KEYS = ("clip.vision.projector.scale_factor", "clip.vision.spatial_merge_size")
_WINDOWED = "qwen2.5vl_merger"


def projector_facts(header: GgufHeader) -> ProjectorFacts | None:
    """The projector of that file; None for a kind whose graph is not known, or a file that does not tell its shape."""
    metadata = header.metadata
    kind = metadata.get("clip.projector_type") or metadata.get("clip.vision.projector_type")
    if not isinstance(kind, str) or kind not in _MERGES:
        return None
    names = ("block_count", "embedding_length", "attention.head_count", "feed_forward_length")
    sizes = [_count(metadata, f"clip.vision.{name}") for name in (*names, "patch_size", "image_size")]
    tensors = {info.name: info for info in header.tensors}
    out = tensors.get("mm.input_projection.weight" if kind == "gemma3" else "mm.2.weight")
    patches = tensors.get("v.patch_embd.weight")
    if None in sizes or out is None or patches is None:
        return None
    layers, width, heads, feed_forward, patch, image = (size or 0 for size in sizes)
    window = _count(metadata, "clip.vision.n_wa_pattern") or 0
    if not all((layers, width, heads, patch, image)) or width % heads or (kind == _WINDOWED and not window):
        return None
    positions = tensors.get("v.position_embd.weight")
    return ProjectorFacts(
        kind=kind,
        layers=layers,
        width=width,
        heads=heads,
        feed_forward=feed_forward,
        patch=patch,
        image=image,
        merge=next((found for key in _MERGE_KEYS if (found := _count(metadata, key))), _MERGES[kind]),
        out=out.shape[0] if kind == "gemma3" else out.shape[-1],
        hidden=tensors["mm.0.weight"].shape[-1] if "mm.0.weight" in tensors else 0,
        positions=round(positions.shape[-1] ** 0.5) if positions is not None else 0,
        window_pattern=window,
        deepstack=tuple(layer for layer in range(layers) if f"v.deepstack.{layer}.fc1.weight" in tensors),
        gated="v.blk.0.ffn_gate.weight" in tensors,
        bytes_of_patch=4 if patches.type_name == "bf16" else 2,
        bytes_of_out=_value_bytes(out),
    )


def _count(metadata: Mapping[str, MetaValue], key: str) -> int | None:
    value = metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20 else None


def _value_bytes(info: TensorInfo) -> int:
    return max(1, (info.size_bytes or 0) // max(1, info.elements))
