"""What a reader of a result has to know about how it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from velollm.bench.conditions import SPREAD_LIMIT
from velollm.bench.samples import Sample
from velollm.bench.sizes import Sizes, Speed, single_answer
from velollm.bench.stats import compare_control, summarise
from velollm.bench.workload import Workload


def note_sizes(workload: Workload, sizes: Sizes, speeds: Mapping[str, Speed], seconds: float) -> list[str]:
    """What was cut so that all fits the time."""
    notes = []
    if sizes.prompt_tokens < workload.prompt_tokens or sizes.decode_tokens < workload.decode_tokens:
        notes.append(
            f"prompts have {sizes.prompt_tokens} of the workload's {workload.prompt_tokens} tokens and answers "
            f"{sizes.decode_tokens} of {workload.decode_tokens}, to fit {seconds:.0f} s"
        )
    for arm, speed in speeds.items():
        tokens = single_answer(speed, sizes).tokens
        if tokens < sizes.decode_tokens:
            rate = speed.decode_tokens_per_s
            notes.append(f"answers of '{arm}' end after {tokens} tokens, because it makes {rate:.1f} a second")
    users = " and ".join(map(str, sizes.levels))
    if sizes.levels and sizes.aggregate_rounds == 0:
        notes.append(f"the part with {users} users at once was left out, to fit {seconds:.0f} s")
    elif sizes.levels and sizes.aggregate_rounds < sizes.rounds:
        notes.append(f"the part with {users} users at once has {sizes.aggregate_rounds} of {sizes.rounds} rounds")
    return notes


def note_spread(samples: Sequence[Sample]) -> list[str]:
    """Arms whose rounds differ too much to be trusted, and what to do."""
    notes = []
    for arm in dict.fromkeys(sample.arm for sample in samples):
        spreads = {metric: summarise(samples, arm, metric).spread for metric in ("ttft", "decode")}
        wide = [f"{metric} {spread:.0%}" for metric, spread in spreads.items() if (spread or 0.0) >= SPREAD_LIMIT]
        if wide:
            notes.append(
                f"unstable: the rounds of '{arm}' spread by {', '.join(wide)}; close other programs, plug the machine "
                "in, let it cool, or give more time (--budget)"
            )
    return notes


def note_control(samples: Sequence[Sample], baseline: str) -> list[str]:
    """Where the same settings, measured twice, are told apart: then so is anything."""
    notes = []
    for metric in ("ttft", "decode"):
        ratio = compare_control(samples, baseline, metric)
        if ratio is not None and ratio.verdict != "no difference" and ratio.estimate is not None:
            notes.append(
                f"two servers with the same settings differ in {metric} by {abs(ratio.estimate - 1):.1%} here, so no "
                "smaller difference counts as one"
            )
    return notes


def note_samples(samples: Sequence[Sample]) -> list[str]:
    """What went wrong with single samples, counted by arm."""
    notes = []
    for arm in dict.fromkeys(sample.arm for sample in samples):
        own = [sample for sample in samples if sample.arm == arm]
        errors = [text for sample in own if (text := sample.error or sample.aggregate_error)]
        if errors:
            notes.append(f"{len(errors)} rounds of '{arm}' had a failed request; the last error: {errors[-1]}")
        if cached := sum(_is_mostly_cached(sample) for sample in own):
            notes.append(f"'{arm}' had more than half of the prompt in its cache in {cached} rounds: TTFT is flattered")
        if short := sum(sample.error is None and sample.decode_tokens_per_s is None for sample in own):
            notes.append(f"'{arm}' gave too few tokens for a decode rate in {short} rounds")
    return notes


def _is_mostly_cached(sample: Sample) -> bool:
    return (sample.cached_prompt_tokens or 0) > (sample.prompt_tokens or 0)
