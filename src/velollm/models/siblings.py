"""Are two files the same model in other number formats?"""

from __future__ import annotations

from velollm.models.gguf import model_facts
from velollm.models.header import GgufHeader

_NAMES = ("general.basename", "general.name", "general.finetune", "general.size_label")
_SHAPE = (
    *("architecture", "parameters", "layers", "embedding_length", "feed_forward_length", "heads", "kv_heads"),
    *("key_length", "value_length", "vocab", "experts", "mtp_layers", "made"),
)
_LEAST_BITS = 4.0


def same_model(one: GgufHeader, other: GgufHeader) -> bool:
    """Do both have the shape of one model, and none of the names that a converter writes down for another?

    The names stay when a file is quantized (``llama-quantize`` and Ollama's own both copy them). A fine-tune that has
    kept all names of its base is taken for it: how far the answers lie apart has to be measured.
    """
    if any(_differ(one.metadata.get(key), other.metadata.get(key)) for key in _NAMES):
        return False
    ours, theirs = model_facts(one, ""), model_facts(other, "")
    return ours.architecture is not None and all(getattr(ours, name) == getattr(theirs, name) for name in _SHAPE)


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def worth_trying(sizes_bytes: list[int], parameters: int | None) -> list[int]:
    """Which of several smaller files to try, by their place: the smallest of 4 bits a weight or more, and the largest.

    Below 4 bits answers suffer so much sooner that such a file is only tried where there is no other.
    """
    if not sizes_bytes:
        return []
    order = sorted(range(len(sizes_bytes)), key=lambda place: sizes_bytes[place])
    usual = [place for place in order if parameters and 8 * sizes_bytes[place] >= _LEAST_BITS * parameters] or order
    return list(dict.fromkeys((usual[0], order[-1])))
