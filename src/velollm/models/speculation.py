"""What drafting gives, by arithmetic: tokens for each pass of the main model, and the acceptance that pays for a draft.

Expected tokens: Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative Decoding",
equation 1 and theorem 3.8. They take checking several tokens to cost what one token costs, as where reading the weights
is all that takes time. A processor that computes slowly pays more for checking, so these are upper bounds.
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


def estimate_gain(chance: float, length: int, cost_ratio: float) -> float:
    """Decode with the draft by decode without: at most this, where a draft's token costs so much of a main model's."""
    return tokens_per_pass(chance, length) / (1 + length * cost_ratio)


def best_length(chance: float, cost_ratio: float, most: int = 16) -> int:
    """The length, up to ``most``, with the highest gain by arithmetic; 0 where no length gains."""
    best = max(range(1, most + 1), key=lambda length: estimate_gain(chance, length, cost_ratio))
    return best if estimate_gain(chance, best, cost_ratio) > 1 else 0


def break_even(cost_ratio: float) -> float:
    """Acceptance (accepted by drafted tokens) below which drafting loses time whatever its length.

    A pass with n drafted tokens costs 1 + n·c and gives 1 + n·a, so a must be more than c.
    """
    return cost_ratio


def break_even_measured(gain: float, acceptance: float, drafted_per_pass: float) -> float:
    """Acceptance that just pays, from a gain that was measured at a known acceptance.

    A pass gave 1 + n·a tokens at ``gain`` times the speed, so it cost (1 + n·a)/gain passes, and must give that much.
    """
    cost = (1 + drafted_per_pass * acceptance) / gain
    return (cost - 1) / drafted_per_pass
