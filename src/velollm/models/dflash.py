"""DFlash drafts: trained for one model, whose inner states they read to guess several tokens in one pass.

What they need of that model is in both headers: src/models/dflash.cpp, common/speculative.cpp:930-1090 and
src/llama-graph.cpp:1352 of llama.cpp b10488. Where it is not there the engine ends at the load or the first prompt.
"""

from __future__ import annotations

from velollm.facts import ModelFacts
from velollm.models.header import GgufHeader
from velollm.models.reads import active_weight_bytes, output_weight_bytes
from velollm.models.speculation import DEFAULT_LENGTH
from velollm.models.tokenizer import Compatibility

ARCHITECTURE = "dflash"
# Their graphs hand out what goes into each layer (``t_layer_inp``), some what comes out of the last one too.
_HAND_OUT_LAST = frozenset({"nemotron_h", "nemotron_h_moe", "deepseek4"})
_HAND_OUT = _HAND_OUT_LAST | {
    *("llama", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gemma4", "gpt-oss"),
    *("minimax-01", "minimax-m2", "muse-glimmer"),
}
_MARKOV = "markov_w1.weight"  # a DSpark draft, which the engine wants another kind of speculation for


def is_dspark(draft: GgufHeader) -> bool:
    """Is that file of the `dflash` architecture a draft of the other kind?"""
    return any(tensor.name == _MARKOV for tensor in draft.tensors)


def check_dflash(main: ModelFacts, draft: GgufHeader) -> Compatibility:
    """Can the engine run the draft beside that model? Whether it was trained for it, only a trial can tell."""
    if is_dspark(draft):
        return Compatibility(False, "it is a DSpark draft, which VeloLLM does not try", "kind")
    if main.architecture not in _HAND_OUT:
        words = f"the engine does not hand out the inner states of {main.architecture} models, which it reads"
        return Compatibility(False, words, "kind")
    width = draft.metadata.get(f"{ARCHITECTURE}.embedding_length")
    if width != main.embedding_length:
        words = f"it reads states of {width} values, and those of the model have {main.embedding_length}"
        return Compatibility(False, words, "size")
    layers = draft.metadata.get(f"{ARCHITECTURE}.target_layers")
    numbers = [layer for layer in layers if isinstance(layer, int)] if isinstance(layers, tuple) else []
    if not numbers:
        return Compatibility(False, "it does not say which of the model's layers it reads", "kind")
    last = (main.layers or 0) - (main.architecture not in _HAND_OUT_LAST)
    if max(numbers) > last:
        words = f"it reads layer {max(numbers)}, and the model's last is {(main.layers or 0) - 1}"
        return Compatibility(False, words, "size")
    return Compatibility(True, f"it reads states as the model has them, in layers {', '.join(map(str, numbers))}")


def dflash_cost_ratio(main: ModelFacts, draft: ModelFacts) -> float | None:
    """Bytes that a guessed token reads by those of the model, at the engine's usual length; None where unknown.

    One pass guesses them all, and takes the output matrix of the model.
    """
    own, output, whole = active_weight_bytes(draft), output_weight_bytes(main), active_weight_bytes(main)
    return (own + output) / DEFAULT_LENGTH / whole if own and output is not None and whole else None
