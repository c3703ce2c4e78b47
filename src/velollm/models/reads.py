"""What one token costs: bytes that are read to decode it, and operations to take it in as part of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from velollm.facts import ModelFacts
from velollm.knobs import KnobValue
from velollm.models.memory import estimate_memory

# A multiplication and an addition for each weight.
_OPERATIONS_PER_WEIGHT = 2


@dataclass(frozen=True)
class TokenCost:
    """``weight_bytes``: active weights; ``cache_bytes``: KV cache and states at the depth that was asked for.

    ``prompt_operations``: arithmetic for one token of a prompt, attention over earlier tokens left out.
    """

    weight_bytes: int
    cache_bytes: int
    prompt_operations: float

    @property
    def read_bytes(self) -> int:
        """All bytes that are read to decode one token."""
        return self.weight_bytes + self.cache_bytes


def estimate_token_cost(model: ModelFacts, *, depth_tokens: int, knobs: Mapping[str, KnobValue]) -> TokenCost | None:
    """Cost of a token behind ``depth_tokens`` others; None where the model's parts or its cache are unknown.

    Of routed experts those count that work on one token; the embedding only where the output matrix is tied to it.
    """
    weights = active_weight_bytes(model)
    depth: dict[str, KnobValue] = {"context_tokens": max(1, depth_tokens), "slots": 1, "speculation": "none"}
    memory = estimate_memory(model, {**knobs, **depth})
    operations = _prompt_operations(model, weights)
    if weights is None or memory is None or operations is None:
        return None
    cache = sum(device.kv_bytes + device.recurrent_bytes for device in memory.devices)
    return TokenCost(weights, cache, operations)


def active_weight_bytes(model: ModelFacts) -> int | None:
    """Bytes of the weights that one token uses; None where it is not known where the weights are."""
    layers = _layer_bytes(model)
    output = output_weight_bytes(model)
    return None if layers is None or output is None else layers + output


def heads_weight_bytes(model: ModelFacts) -> int | None:
    """Bytes of the weights that one guess of its MTP layers uses, the model's output matrix among them.

    What such a layer has of routed experts is not known by itself, and is taken for as much as the last layer has.
    """
    output = output_weight_bytes(model)
    if output is None or not model.mtp_parts or model.expert_parts is None:
        return None
    routed = model.expert_parts[-1].bytes if model.expert_parts else 0
    if routed and not (model.experts and model.experts_used):
        return None
    idle = routed * (1 - (model.experts_used or 0) / model.experts) if model.experts else 0
    return output + sum(round(max(0, sum(part.matrices.values()) - idle)) for part in model.mtp_parts)


def _layer_bytes(model: ModelFacts) -> int | None:
    if model.layer_parts is None or model.expert_parts is None:
        return None
    experts = sum(part.bytes for part in model.expert_parts)
    if experts and not (model.experts and model.experts_used):
        return None
    share = (model.experts_used or 0) / model.experts if model.experts else 0.0
    return sum(part.bytes for part in model.layer_parts) + round(experts * share)


def output_weight_bytes(model: ModelFacts) -> int | None:
    """Bytes of the output matrix and its norm; None where it is not known where the weights are."""
    if model.output_part is None or model.input_part is None:
        return None
    tied = sum(model.input_part.matrices.values()) if model.tied_embeddings else 0
    return model.output_part.bytes + tied


def _prompt_operations(model: ModelFacts, weights: int | None) -> float | None:
    """Only the last token of a prompt goes through the output matrix, so the layers alone count."""
    layers = _layer_bytes(model)
    if layers is None or not weights or not model.tensor_bytes or not model.parameters:
        return None
    bytes_per_weight = model.tensor_bytes / model.parameters
    return _OPERATIONS_PER_WEIGHT * layers / bytes_per_weight
