"""The measured price of a setting that can change answers, as text."""

from __future__ import annotations

from velollm.tune.keep import METRIC_WORDS
from velollm.tune.price import OtherFile, Price


def render_price(setting: str, price: Price) -> list[str]:
    """Lines for the terminal: the figures of ``setting`` (``kv_type_k=q8_0``), then how they are to be read."""
    mean, worst = _small(price.kl_mean), _small(price.kl_p99)
    between = f"95% {_small(price.kl_low)}-{_small(price.kl_high)}"
    lines = [
        f"price of {setting}:",
        f"  divergence  {mean} nats a token ({between}), one in a hundred above {worst}",
        f"  same token  the likeliest is the same one at {price.same_top_share:.1%} of {price.positions} positions",
        f"  perplexity  {_perplexity(price)}",
        f"  measured on a fixed text, up to {price.depth_tokens:,} tokens deep; 0 nats: no difference",
    ]
    if price.binned_share >= 0.001:
        lines.append(f"  a lower bound: {price.binned_share:.1%} of the probability lies on tokens not told apart")
    return [*lines, *(f"  {note}" for note in price.notes)]


def render_smaller(file: OtherFile) -> list[str]:
    """Lines for a smaller file of the model: how much faster, how much less memory, and its price."""
    speed = file.speed
    if speed.estimate is None:
        gain = "not measured"
    else:
        span = "" if speed.low is None or speed.high is None else f", 95% {speed.low:.2f}-{speed.high:.2f}"
        gain = f"{METRIC_WORDS[file.metric]} {speed.estimate:.2f}x as fast ({speed.verdict}{span})"
    memory = "" if file.memory_share is None else f", {file.memory_share:.0%} of the memory"
    first = f"The same model in {file.file_type or 'another format'}, {file.name}: {gain}{memory}."
    return [first, *render_price(file.file_type or file.name, file.price), f"To use it: velollm optimize {file.name}"]


def _perplexity(price: Price) -> str:
    before, after = price.perplexity_reference, price.perplexity_other
    if before is None or after is None:
        return "unknown"
    return f"{before:.3f} -> {after:.3f} ({after / before - 1:+.2%})"


def _small(value: float) -> str:
    """A divergence with two digits that count; 0 only where it is exactly that."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
