"""How a model's figures went from one version of the engine to the next, with all else as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from velollm.bench.apart import floor_of, group, key_of, ratio_apart
from velollm.bench.history import Record
from velollm.bench.samples import Sample
from velollm.bench.stats import Ratio

FIGURES = ("prefill", "decode", "ttft")


@dataclass(frozen=True)
class Trend:
    """One arm of one model with one workload: what it did with the version ``before`` and the version ``after``.

    ``ratios``: above 1, the newer version is better. ``runs``: how many results there are of either version.
    ``newest``: id of the newest result.
    """

    model: str
    backend: str
    arm: str
    workload: str
    depth_tokens: int
    before: str
    after: str
    ratios: Mapping[str, Ratio]
    runs: tuple[int, int]
    newest: str

    @property
    def changed(self) -> dict[str, Ratio]:
        """The figures that are proved to have changed."""
        return {name: ratio for name, ratio in self.ratios.items() if ratio.verdict != "no difference"}


def find_trends(records: Sequence[Record], since: Sequence[Record] | None = None) -> tuple[Trend, ...]:
    """The newest version against the one before it, for everything that was measured with both.

    ``records`` are this machine's, oldest first. With ``since``, the part of them that is looked at, the newest version
    is put against the oldest one there.
    """
    window = None if since is None else {record.id for record in since}
    trends = []
    for known in group(records).values():
        found = [(record, arm) for record, arm in known if window is None or record.id in window]
        if (trend := _trend(found, known, oldest=since is not None)) is not None:
            trends.append(trend)
    return tuple(trends)


def trends_of(records: Sequence[Record], newest: Record) -> tuple[Trend, ...]:
    """The trends that this result is the newest of; ``records`` need not hold it."""
    others = [record for record in records if record.id != newest.id]
    mine = {key for arm in newest.arms if (key := key_of(newest, arm)) is not None}
    same = [record for record in others if any(key_of(record, arm) in mine for arm in record.arms)]
    return tuple(trend for trend in find_trends([*same, newest]) if trend.newest == newest.id)


def _trend(found: Sequence[tuple[Record, str]], known: Sequence[tuple[Record, str]], *, oldest: bool) -> Trend | None:
    if not found:
        return None
    newest, arm = found[-1]
    after = newest.engine_version
    others = [record.engine_version for record, _ in found if record.engine_version != after]
    before = (others[0] if oldest else others[-1]) if others else None
    if before is None or after is None:
        return None
    sides = [[pair for pair in found if pair[0].engine_version == version] for version in (before, after)]
    old, new = (list(_samples(side)) for side in sides)
    ratios: dict[str, Ratio] = {}
    for metric in FIGURES:
        if (ratio := ratio_apart(old, new, metric, floor_of([known], metric))) is not None:
            ratios[metric] = ratio
    runs = len(sides[0]), len(sides[1])
    return Trend(
        newest.model, newest.backend, arm, newest.workload, newest.depth_tokens, before, after, ratios, runs, newest.id
    )


def _samples(side: Sequence[tuple[Record, str]]) -> Iterator[Sample]:
    for record, arm in side:
        yield from record.samples_of(arm)


def change_of(ratio: Ratio, *, higher_is_better: bool) -> tuple[float, float | None, float | None]:
    """By how much the figure itself went up or down, as a share, and the ends of its interval, the smaller first."""
    assert ratio.estimate is not None
    turned = [None if end is None else end if higher_is_better else 1 / end for end in (ratio.low, ratio.high)]
    ends = sorted(end - 1 for end in turned if end is not None)
    estimate = (ratio.estimate if higher_is_better else 1 / ratio.estimate) - 1
    return estimate, ends[0] if len(ends) == 2 else None, ends[1] if len(ends) == 2 else None
