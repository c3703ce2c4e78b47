"""Layers of a model that guess further tokens (MTP): where the engine runs them, and what it keeps for guesses.

Source: llama.cpp b10488, ``graph_mtp`` and ``load_mtp`` in src/models/*.cpp, ``create_memory`` in src/llama-model.cpp,
common/speculative.cpp:2374-2425.
"""

from __future__ import annotations

from dataclasses import replace

from velollm.facts import ModelFacts, PartFacts
from velollm.models.graph_models import build_heads_graph
from velollm.models.graph_parts import Step
from velollm.models.memory_cache import MTP_APART, CacheSize, kv_layer_bytes

# Those whose layers can guess; of others with such layers (glm4moe, exaone4 …) the engine skips them.
_RUN = frozenset(
    {
        *("qwen35", "qwen35moe", "qwen3next", "step35", "mimo2", "cohere2moe", "hy_v3", "nemotron_h_moe"),
        *("deepseek2", "deepseek32", "deepseek4", "glm-dsa", "bailingmoe3"),
    }
)
# Recurrent states go back to before a wrong guess where they were kept (src/llama-arch.cpp:1025).
_ROLLS_BACK = frozenset({"qwen35", "qwen35moe", "deepseek4", "nemotron_h", "nemotron_h_moe"})
_KEEPS_STATES = frozenset({"draft-mtp", "draft-dflash"})  # common/common.h:386
_FLOAT_BYTES = 4


def runs_heads(model: ModelFacts) -> bool:
    """Can the engine guess with the MTP layers of that model? Some files tell of layers that they do not hold."""
    held = model.mtp_parts is None or any(part.bytes for part in model.mtp_parts)
    return bool(model.mtp_layers) and held and model.architecture in _RUN


def loaded(model: ModelFacts, speculation: str) -> ModelFacts:
    """The model without the weights of its MTP layers where the engine does not load them: it guesses otherwise."""
    if not model.mtp_parts or (runs_heads(model) and speculation == "draft-mtp"):
        return model
    return model.model_copy(update={"mtp_parts": (PartFacts(bytes=0),) * len(model.mtp_parts)})


def kept_states(model: ModelFacts, speculation: str, proposed: int) -> int:
    """Recurrent states that are kept of each sequence: the newest, and one for each token that may be taken back."""
    return 1 + proposed if speculation in _KEEPS_STATES and model.architecture in _ROLLS_BACK else 1


def heads_bytes(model: ModelFacts, size: CacheSize, step: Step) -> int | None:
    """What guesses of MTP layers need beside the weights: a cache in 16 bits, compute and output buffers.

    None where the model's shape is not known well enough.
    """
    layer = _layer(model)
    if layer is None or layer.vocab is None:
        return None
    own = model.architecture in MTP_APART
    cache = kv_layer_bytes(layer if own else model, size, "f16", "f16", transposed=not step.flash_attention)
    graph = build_heads_graph(layer, replace(step, outputs=step.sequences, turns_k=False, turns_v=False, snapshots=1))
    if cache is None or graph is None:
        return None
    output = step.sequences * layer.vocab * _FLOAT_BYTES
    (compute,) = graph.buffer_bytes()
    return sum(cache) * ((model.mtp_layers or 1) if own else 1) + compute + output


def _layer(model: ModelFacts) -> ModelFacts | None:
    """One MTP layer as a model of its own: the last layer of the model that attends to all tokens."""
    slides = model.sliding_layers or (False,) * (model.layers or 0)
    attending = [i for i, heads in enumerate(model.kv_heads or ()) if heads and not slides[i]]
    if not attending:
        return None
    last = attending[-1]
    per_layer = ("kv_heads", "heads", "feed_forward_length", "expert_layers")
    values = {name: getattr(model, name) for name in per_layer}
    return model.model_copy(
        update={
            **{name: None if value is None else (value[last],) for name, value in values.items()},
            "layers": 1,
            "mtp_layers": 0,
            "dense_layers": 0,
            "recurrent_layers": (False,),
            "sliding_layers": (False,),
            "kv_shared_layers": 0,
        }
    )
