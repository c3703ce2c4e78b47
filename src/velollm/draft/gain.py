"""What a draft would gain here, by arithmetic: the pass of the main model, the draft's own, and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from velollm.facts import ModelFacts
from velollm.models.drafts import Acceptance, DraftPair
from velollm.models.reads import estimate_token_cost
from velollm.models.speculation import DEFAULT_LENGTH, chance_of, tokens_per_pass
from velollm.models.speed import DeviceSpeed

_MOST = 16


@dataclass(frozen=True)
class Gain:
    """Decode with a draft by decode without, at ``length`` drafted tokens: least and most of the acceptances known.

    ``tokens_per_pass`` belongs to ``most``. ``check_ratio``: what taking in one more token costs, in passes (None:
    this machine's rates are unknown, and checking counts as free).
    """

    length: int
    least: float
    most: float
    tokens_per_pass: float
    cost_ratio: float
    check_ratio: float | None
    break_even: float


def check_ratio(model: ModelFacts, device: DeviceSpeed | None) -> float | None:
    """Seconds to compute one token by seconds to read the weights, on the device that runs the model; None: unknown."""
    cost = estimate_token_cost(model, depth_tokens=1, knobs={})
    if device is None or cost is None or device.read is None or device.multiply is None:
        return None
    decode = device.shares.sparse if model.experts else device.shares.decode
    prefill = device.shares.prefill
    if decode is None or prefill is None:
        return None
    read_s = cost.read_bytes / (device.read.per_s * decode.middle)
    return cost.prompt_operations / (device.multiply.per_s * prefill.middle) / read_s


def estimate_gain(acceptance: Acceptance, cost_ratio: float, check: float | None, pair: DraftPair | None) -> Gain:
    """The gain at the length that is best for the middle of the acceptances.

    A pass with n drafted tokens costs the reading of the weights or the computing of n + 1 tokens, whichever takes
    longer, and n passes of the draft.
    """
    shares = (acceptance.low, acceptance.high)
    # Made models agree so far token by token; what an engine counts also has what comes behind a wrong one.
    chances = shares if acceptance.basis == "made" else tuple(chance_of(s, _measured_length(pair)) for s in shares)
    middle = sum(chances) / 2
    length = max(range(1, _MOST + 1), key=lambda n: _gain(middle, n, cost_ratio, check))
    pass_cost = _pass_cost(length, cost_ratio, check)
    return Gain(
        length=length,
        least=_gain(chances[0], length, cost_ratio, check),
        most=_gain(chances[1], length, cost_ratio, check),
        tokens_per_pass=tokens_per_pass(chances[1], length),
        cost_ratio=cost_ratio,
        check_ratio=check,
        break_even=min(1.0, (pass_cost - 1) / length),
    )


def _gain(chance: float, length: int, cost_ratio: float, check: float | None) -> float:
    return tokens_per_pass(chance, length) / _pass_cost(length, cost_ratio, check)


def _pass_cost(length: int, cost_ratio: float, check: float | None) -> float:
    return max(1.0, (length + 1) * (check or 0.0)) + length * cost_ratio


def _measured_length(pair: DraftPair | None) -> int:
    """At which length the acceptances were counted; the engine's default where no report says so."""
    lengths: Sequence[int] = [report.draft_max for report in (pair.acceptance if pair else ()) if report.draft_max]
    return lengths[0] if len(set(lengths)) == 1 else DEFAULT_LENGTH
