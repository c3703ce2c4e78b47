"""Where each part of a model's weights goes, and how many bytes it takes there."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from velollm.facts import ModelFacts, PartFacts
from velollm.models.parts import OTHERS

CPU = "CPU"


@dataclass(frozen=True)
class Placement:
    """Where the engine puts things: a device name for each layer, and for the output matrix.

    ``layers`` includes MTP layers at its end. ``experts``: where the routed experts of each layer are;
    ``feed_forward``: where what all tokens go through beside attention is, the same way.
    """

    layers: tuple[str, ...]
    experts: tuple[str, ...]
    output: str
    feed_forward: tuple[str, ...] = ()


@dataclass
class WeightBytes:
    """Weights on one device: as in the file, and repacked for its processor."""

    plain: int = 0
    repacked: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)

    def mapped(self) -> int:
        """Bytes of the file from the first tensor that is used in place to the end of the last."""
        return max((end for _, end in self.spans), default=0) - min((start for start, _ in self.spans), default=0)


def place(
    layers: int,
    *,
    gpu_layers: int,
    cpu_moe_layers: int,
    gpus: tuple[str, ...],
    split: tuple[float, ...] | None = None,
    cpu_ffn_layers: int = 0,
) -> Placement:
    """Layers and output matrix by device, as llama.cpp shares them out (src/llama-model.cpp:1354-1379).

    The last ``gpu_layers`` of all layers and the output matrix, which counts as one more, go to the GPUs, in
    order, in proportion to ``split`` (in equal parts without one; the engine takes the free memory of each).
    """
    first = max(layers + 1 - gpu_layers, 0)
    used = min(gpu_layers, layers + 1) if gpus else 0
    shares = split if split and len(split) == len(gpus) and sum(split) > 0 else (1.0,) * len(gpus)
    bounds = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]

    def device(layer: int) -> str:
        if layer < first or layer - first >= used:
            return CPU
        return gpus[min(bisect_right(bounds, (layer - first) / used), len(gpus) - 1)]

    homes = tuple(device(layer) for layer in range(layers))

    def but_first(count: int) -> tuple[str, ...]:
        return tuple(CPU if layer < count else home for layer, home in enumerate(homes))

    return Placement(homes, but_first(cpu_moe_layers), device(layers), but_first(cpu_ffn_layers))


def estimate_weights(
    model: ModelFacts, placement: Placement, repacks: frozenset[str], *, mmap: bool
) -> dict[str, WeightBytes] | None:
    """Weights by device. ``repacks``: number formats that the CPU repacks; ``mmap``: the file stays mapped beside.

    A mapped file counts from its first tensor that the CPU uses in place to the end of the last, as the engine's
    ``CPU_Mapped model buffer`` does (src/llama-model-loader.cpp, ``get_mapping_range``). None where the sizes are
    unknown.
    """
    if model.layer_parts is None or model.expert_parts is None or model.input_part is None or model.output_part is None:
        return _whole(model, placement)
    found: dict[str, WeightBytes] = {}
    for device, part in _parts(model, placement):
        _add(found.setdefault(device, WeightBytes()), part, repacks if device == CPU else frozenset())
    if model.tied_embeddings:
        _add_tied(found, model.input_part, placement.output, repacks)
    cpu = found.setdefault(CPU, WeightBytes())
    if mmap and cpu.repacked:
        # Where the tensors lie is not known of a model that was only described: then the whole file counts.
        cpu.plain = cpu.mapped() or cpu.plain + cpu.repacked - _tied_bytes(model, placement, repacks)
    elif mmap and cpu.spans:
        cpu.plain = cpu.mapped()
    return found


def largest_on_cpu(model: ModelFacts, placement: Placement) -> int:
    """The largest tensor of layers in main memory: a GPU beside takes it in for each large step.

    Source: ggml/src/ggml-backend.cpp, ``ggml_backend_sched_backend_id_from_cur`` (``op_offload``). Where the tensors of
    a part are not known one by one, a third of it, as of three matrices.
    """
    found = [0]
    for homes, parts in (
        (placement.layers, model.layer_parts),
        (placement.feed_forward, model.feed_forward_parts),
        (placement.experts, model.expert_parts),
    ):
        for home, part in zip(homes, parts or (), strict=False):
            if home == CPU:
                found.append(part.bytes // 3 if part.largest_bytes is None else part.largest_bytes)
    return max(found)


def lacking_shape(model: ModelFacts) -> tuple[str, ...]:
    """Names of the facts that an estimate needs and this model does not tell.

    With all of them there, it is the architecture whose cache or graph cannot be worked out.
    """
    names = ["layers", "embedding_length", "vocab", "recurrent_layers"]
    if not (model.recurrent_layers and all(model.recurrent_layers)):
        names += ["heads", "kv_heads", "key_length", "value_length"]
    lacked = [name for name in names if getattr(model, name) is None]
    if model.tensor_bytes is None and model.file_bytes is None:
        lacked.append("tensor_bytes")
    return tuple(lacked)


def _whole(model: ModelFacts, placement: Placement) -> dict[str, WeightBytes] | None:
    """All weights on the one device that has them; None where there are several and the parts are unknown."""
    total = model.tensor_bytes if model.tensor_bytes is not None else model.file_bytes
    if total is None or {*placement.layers, *placement.experts, placement.output} != {CPU}:
        return None
    return {CPU: WeightBytes(plain=total)}


def _parts(model: ModelFacts, placement: Placement) -> list[tuple[str, PartFacts]]:
    layers, experts = model.layer_parts or (), model.expert_parts or ()
    found = list(zip(placement.layers, layers, strict=False))
    for number, (home, inner, part) in enumerate(
        zip(placement.layers, placement.feed_forward, model.feed_forward_parts or (), strict=False)
    ):
        if inner != home:
            # Of what stays on a GPU the bytes alone matter: nothing is repacked there.
            found[number] = (home, PartFacts(bytes=layers[number].bytes - part.bytes))
            found.append((inner, part))
    found += zip(placement.experts, experts, strict=False)
    found += zip(placement.layers[len(layers) :], model.mtp_parts or (), strict=False)
    assert model.input_part is not None
    assert model.output_part is not None
    return [*found, (CPU, _looked_up(model.input_part)), (placement.output, model.output_part)]


def _looked_up(part: PartFacts) -> PartFacts:
    """The embedding as a table: nothing of it is repacked."""
    starts, ends = zip(*part.spans.values(), strict=True) if part.spans else ((0,), (0,))
    return PartFacts(bytes=part.bytes, spans={OTHERS: (min(starts), max(ends))} if part.spans else {})


def _add(total: WeightBytes, part: PartFacts, repacks: frozenset[str]) -> None:
    repacked = sum(size for kind, size in part.matrices.items() if kind in repacks)
    total.repacked += repacked
    total.plain += part.bytes - repacked
    total.spans += [span for kind, span in part.spans.items() if kind not in repacks]


def _add_tied(found: dict[str, WeightBytes], part: PartFacts, output: str, repacks: frozenset[str]) -> None:
    """The copy of a tied embedding that is multiplied with, where it cannot be the same tensor."""
    total = found.setdefault(output, WeightBytes())
    if output == CPU:
        total.repacked += sum(size for kind, size in part.matrices.items() if kind in repacks)
    else:
        total.plain += sum(part.matrices.values()) or part.bytes


def _tied_bytes(model: ModelFacts, placement: Placement, repacks: frozenset[str]) -> int:
    """Bytes of a repacked copy that is there beside its original in any case."""
    if not model.tied_embeddings or placement.output != CPU or model.input_part is None:
        return 0
    return sum(size for kind, size in model.input_part.matrices.items() if kind in repacks)
