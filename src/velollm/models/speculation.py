"""What drafting gives, by arithmetic: tokens for each pass of the main model, and how much of the drafts is accepted.

Source: Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative Decoding", equation 1.
"""

from __future__ import annotations

# Tokens that draft models propose at once where nothing is set (common/common.h:325 of llama.cpp b10488).
DEFAULT_LENGTH = 3


def tokens_per_pass(chance: float, length: int) -> float:
    """Tokens for each pass where each of ``length`` drafted ones is right with that chance, if those before it are."""
    if chance >= 1:
        return length + 1.0
    return float((1 - chance ** (length + 1)) / (1 - chance))


def share_accepted(chance: float, length: int) -> float:
    """Accepted by drafted tokens, as the engine counts them: what follows a wrong one is thrown away."""
    return (tokens_per_pass(chance, length) - 1) / length


def chance_of(share: float, length: int) -> float:
    """The chance behind an acceptance that was counted at that length: the inverse of `share_accepted`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_accepted(middle, length) < share else (low, middle)
    return (low + high) / 2
