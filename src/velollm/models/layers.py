"""Which layers of an architecture slide, recur or share their KV cache, where the file leaves that to the engine.

Source: llama.cpp, ``load_arch_hparams`` of src/models/*.cpp and ``llama_hparams::set_swa_pattern`` in
src/llama-hparams.cpp (read at commits of mid-2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from velollm.models.header import MetaValue


@dataclass(frozen=True)
class SlidingRule:
    """How an engine lays out sliding-window layers: all but every ``period``-th one slide.

    ``window``: tokens where the file names none (None: then nothing slides). ``full_first``: the full layer
    comes first in each period, not last. ``only_layers``: the rule holds only for models of that many layers.
    ``fixed_window``: the engine ignores the number in the file, but 0 there still means that nothing slides.
    """

    period: int
    window: int | None = None
    full_first: bool = False
    only_layers: int | None = None
    fixed_window: bool = False


_SLIDING = {
    "gemma2": SlidingRule(2, 4096),
    "gemma3": SlidingRule(6),
    "gemma3n": SlidingRule(5),
    "cohere2": SlidingRule(4),
    "gpt-oss": SlidingRule(2),
    "llama4": SlidingRule(4, 8192, fixed_window=True),
    "exaone4": SlidingRule(4, 4096, only_layers=64),
    "exaone-moe": SlidingRule(4),
    "olmo2": SlidingRule(4),
    "plamo3": SlidingRule(8),
    "afmoe": SlidingRule(4),
    "smallthinker": SlidingRule(4, full_first=True),
}

# Every layer recurs (``llm_arch_is_recurrent``), or recurs and attends side by side (falcon-h1).
_ALL_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_BOTH = frozenset({"falcon-h1"})
# A layer without KV heads recurs (in nemotron_h: if it has no feed-forward part either).
_BY_KV_HEADS = frozenset({"jamba", "granitehybrid", "lfm2", "lfm2moe", "plamo2", "kimi-linear"})
_BY_KV_HEADS_AND_FEED_FORWARD = frozenset({"nemotron_h", "nemotron_h_moe"})
# Every fourth layer attends, the others recur, unless the file says otherwise.
_BY_INTERVAL = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_INTERVAL = 4

_GEMMA3N_LAYERS_WITH_KV = 20


def count(value: MetaValue | None) -> TypeGuard[int]:
    """Is this a whole number from 0 on?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def sliding_layers(
    architecture: str, metadata: Mapping[str, MetaValue], layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    """The sliding window in tokens (None: none is named) and which of the layers slide.

    An architecture whose engine ignores the window that its files name (llama, qwen2, phi3) has no sliding layers.
    """
    named = metadata.get(f"{architecture}.attention.sliding_window")
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    window = named if count(named) else None
    none = (False,) * layers
    if isinstance(pattern, tuple) and pattern and window:
        # A shorter list repeats.
        return window, tuple(bool(pattern[i % len(pattern)]) for i in range(layers))
    rule = _SLIDING.get(architecture)
    if rule is None or rule.only_layers not in (None, layers) or window == 0:
        return window, none
    window = rule.window if window is None or rule.fixed_window else window
    if window is None:
        return None, none
    period = pattern if count(pattern) else rule.period
    return window, tuple(_slides(i, period, rule.full_first) for i in range(layers))


def _slides(layer: int, period: int, full_first: bool) -> bool:
    if period == 0:
        return True
    return layer % period != 0 if full_first else layer % period < period - 1


def recurrent_layers(
    architecture: str,
    metadata: Mapping[str, MetaValue],
    kv_heads: tuple[int, ...] | None,
    feed_forward: tuple[int, ...] | None,
    layers: int,
) -> tuple[bool, ...] | None:
    """Which layers keep a recurrent state; None where that cannot be told."""
    if architecture in _ALL_RECURRENT | _BOTH:
        return (True,) * layers
    if architecture in _BY_INTERVAL:
        listed = metadata.get(f"{architecture}.attention.recurrent_layers")
        if isinstance(listed, tuple) and len(listed) >= layers:
            return tuple(bool(value) for value in listed[:layers])
        interval = metadata.get(f"{architecture}.full_attention_interval", _INTERVAL)
        step = interval if count(interval) and interval > 0 else _INTERVAL
        return tuple((i + 1) % step != 0 for i in range(layers))
    if architecture in _BY_KV_HEADS:
        return None if kv_heads is None else tuple(heads == 0 for heads in kv_heads)
    if architecture in _BY_KV_HEADS_AND_FEED_FORWARD:
        if kv_heads is None or feed_forward is None:
            return None
        return tuple(heads == 0 and width == 0 for heads, width in zip(kv_heads, feed_forward, strict=True))
    return (False,) * layers


def attends(architecture: str, recurrent: bool) -> bool:
    """Does a layer that recurs (or not) also attend, and so keep a KV cache?"""
    return not recurrent or architecture in _BOTH


def shared_kv_layers(architecture: str, metadata: Mapping[str, MetaValue], layers: int) -> int:
    """How many of the last layers use the KV cache of earlier ones."""
    named = metadata.get(f"{architecture}.attention.shared_kv_layers")
    if count(named):
        return min(named, layers)
    return max(0, layers - _GEMMA3N_LAYERS_WITH_KV) if architecture == "gemma3n" else 0
