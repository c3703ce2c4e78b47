"""Which part of a model each tensor belongs to, and how much of it a processor may repack.

Names and parts: llama.cpp b10488, ``LLM_TENSOR_NAMES`` and ``LLM_TENSOR_INFOS`` of src/llama-arch.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from velollm.facts import PartFacts
from velollm.models.header import TensorInfo

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERTS = re.compile(r"\.ffn_(?:gate|up|down|gate_up)_(?:ch)?exps\.")
# What `cpu_ffn_layers` moves: no norms, no routers (backends/llamaargs.py names the same ones to the engine).
_FEED_FORWARD = re.compile(r"\.ffn_(?:gate|up|down)(?:_shexp)?\.(?:weight|bias)$")
_OTHER_PARTS = ("v.", "mm.", "a.", "resampler.")  # tools/mtmd/clip-impl.h, TN_*
_LOOKED_UP = ".nextn.embed_tokens.weight"
_INPUTS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
# Rows that every repacked format interleaves (ggml/src/ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type).
_ROWS = 8
OTHERS = ""


class _Sum:
    """Adds up the tensors of one part."""

    def __init__(self, *, placed: bool) -> None:
        self.placed = placed
        self.bytes = 0
        self.largest = 0
        self.matrices: dict[str, int] = {}
        self.spans: dict[str, tuple[int, int]] = {}

    def add(self, info: TensorInfo, *, matrix: bool) -> None:
        size = info.size_bytes or 0
        self.bytes += size
        self.largest = max(self.largest, size)
        kind = info.type_name if matrix else OTHERS
        if matrix:
            self.matrices[kind] = self.matrices.get(kind, 0) + size
        if not self.placed:
            return
        first, end = self.spans.get(kind, (info.offset, 0))
        self.spans[kind] = (min(first, info.offset), max(end, info.offset + size))

    def facts(self) -> PartFacts:
        return PartFacts(bytes=self.bytes, largest_bytes=self.largest, matrices=self.matrices, spans=self.spans)


def weight_parts(tensors: Iterable[TensorInfo], layers: int, mtp_layers: int) -> dict[str, object]:
    """The fields of `ModelFacts` that say where the weights are; blocks from ``layers`` on are MTP layers."""
    tensors = tuple(tensors)
    # A model that was only described has all its tensors at the beginning.
    placed = any(info.offset for info in tensors)
    tied = not any(info.name == "output.weight" for info in tensors)
    blocks = [_Sum(placed=placed) for _ in range(layers + mtp_layers)]
    experts = [_Sum(placed=placed) for _ in range(layers + mtp_layers)]
    feed_forward = [_Sum(placed=placed) for _ in range(layers)]
    embedding, output, projector = (_Sum(placed=placed) for _ in range(3))
    for info in tensors:
        match = _BLOCK.match(info.name)
        if match:
            number = int(match.group(1))
            if number < len(blocks):
                routed = _EXPERTS.search(info.name) is not None
                matrix = _is_matrix(info, 3 if routed else 2)
                (experts if routed else blocks)[number].add(info, matrix=matrix)
                if number < layers and _FEED_FORWARD.search(info.name):
                    feed_forward[number].add(info, matrix=matrix)
        elif info.name.startswith(_OTHER_PARTS):
            projector.add(info, matrix=False)
        elif info.name.startswith(_INPUTS):
            # As long as it is only looked up, an embedding is not repacked; multiplied with, it is.
            embedding.add(info, matrix=tied and info.name == "token_embd.weight" and _is_matrix(info, 2))
        else:
            output.add(info, matrix=_is_matrix(info, 2))
    return {
        "layer_parts": tuple(part.facts() for part in blocks[:layers]),
        "feed_forward_parts": tuple(part.facts() for part in feed_forward),
        "expert_parts": tuple(part.facts() for part in experts[:layers]),
        "mtp_parts": tuple(
            _both(dense.facts(), routed.facts())
            for dense, routed in zip(blocks[layers:], experts[layers:], strict=True)
        ),
        "input_part": embedding.facts(),
        "output_part": output.facts(),
        "projector_bytes": projector.bytes,
        "tied_embeddings": tied,
    }


def _is_matrix(info: TensorInfo, dimensions: int) -> bool:
    shape = info.shape
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    multiplied = info.name.endswith(".weight") and not info.name.endswith(_LOOKED_UP)
    return multiplied and len(shape) == dimensions and shape[1] % _ROWS == 0


def _both(first: PartFacts, second: PartFacts) -> PartFacts:
    """Two parts as one."""
    names = {**first.matrices, **second.matrices}
    spans = dict(first.spans)
    for kind, (start, end) in second.spans.items():
        old = spans.get(kind, (start, end))
        spans[kind] = (min(old[0], start), max(old[1], end))
    return PartFacts(
        bytes=first.bytes + second.bytes,
        largest_bytes=max(first.largest_bytes or 0, second.largest_bytes or 0),
        matrices={name: first.matrices.get(name, 0) + second.matrices.get(name, 0) for name in names},
        spans=spans,
    )
