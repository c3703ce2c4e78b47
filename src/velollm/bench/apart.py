"""Results that did not take turns: another day, another version of the engine, and a floor that is wide for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from velollm.bench.history import Record
from velollm.bench.samples import METRICS, Metric, Sample, metric_of, value_of
from velollm.bench.stats import Floor, Interval, Ratio, median_interval, ratio_of_sets
from velollm.facts import Facts

LEAST_FLOOR = 1.10
"""Runs of the same settings at different times differ by some percent on a quiet machine, and by far more on a busy one
(docs/measuring.md, "Runs that did not take turns"): nothing below a tenth is called a difference."""

_ALIKE = 1.1
# Figures that depend on how long the prompt was, or the answer.
_BY_PROMPT = ("ttft", "answer_ttft", "cached_ttft", "prefill", "turn")

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Side:
    """What one of two results says: each figure's median over its rounds, with its interval."""

    record: Record
    summary: Mapping[str, Interval]


@dataclass(frozen=True)
class Apart:
    """An arm of one result against an arm of another. ``ratios``: above 1, ``after`` is better; a figure that the two
    did not measure in the same way is not among them.
    """

    arm: str
    before: Side
    after: Side
    ratios: Mapping[str, Ratio]


def key_of(record: Record, arm: str) -> Key | None:
    """What must be the same for two results to be of the same thing but for the engine's version; None: unknown.

    The machine, the model's file, the backend, the arm's knobs, the workload and the depth.
    """
    digest = record.digests.get(arm)
    if record.machine is None or digest is None or record.origin != "here":
        return None
    knobs = json.dumps(record.knobs.get(arm, {}), sort_keys=True)
    return record.machine, digest, record.backend, knobs, record.workload, record.depth_tokens


def group(records: Iterable[Record]) -> dict[Key, list[tuple[Record, str]]]:
    """Results and their arms that are of the same thing, in the order of the results.

    What broke off or was disturbed proves nothing of an engine, and is left out.
    """
    groups: dict[Key, list[tuple[Record, str]]] = {}
    for record in records:
        if record.incomplete is not None or record.disturbed:
            continue
        for arm in record.arms:
            if (key := key_of(record, arm)) is not None and record.engine_version is not None:
                groups.setdefault(key, []).append((record, arm))
    return groups


def compare_records(before: Record, after: Record, known: Iterable[Record] = ()) -> tuple[Apart, ...]:
    """Every arm that both results have; where no name is in both, the first of each.

    ``known``: the history, whose runs of the same settings tell how much runs apart differ here.
    """
    names = [(arm, arm) for arm in after.arms if arm in before.arms]
    if not names and before.arms and after.arms:
        names = [(before.arms[0], after.arms[0])]
    groups = group(known)
    return tuple(_compare(before, old, after, new, groups) for old, new in names)


def _compare(
    before: Record, old: str, after: Record, new: str, groups: Mapping[Key, Sequence[tuple[Record, str]]]
) -> Apart:
    keys = {key for pair in ((before, old), (after, new)) if (key := key_of(*pair)) is not None}
    known = [groups.get(key, ()) for key in keys]
    sides = before.samples_of(old), after.samples_of(new)
    metrics = [name for name in _metrics(before, after) if any(_values(side, metric_of(name)) for side in sides)]
    ratios = {}
    for name in metrics:
        if (ratio := ratio_apart(*sides, name, floor_of(known, name))) is not None:
            ratios[name] = ratio
    summaries = [{name: median_interval(_values(side, metric_of(name))) for name in metrics} for side in sides]
    title = new if old == new else f"{old}, {new}"
    return Apart(title, Side(before, summaries[0]), Side(after, summaries[1]), ratios)


def _metrics(*records: Record) -> list[str]:
    users = sorted({crowd.users for record in records for sample in record.samples for crowd in sample.crowds})
    crowds = [f"{kind}_{n}" for n in users for kind in ("aggregate", "worst_ttft", "fairness")]
    return [*(name for name, metric in METRICS.items() if not metric.users and not name.endswith("_4")), *crowds]


def ratio_apart(before: Sequence[Sample], after: Sequence[Sample], metric: str, floor: Floor) -> Ratio | None:
    """The ratio of two runs; None where one of them lacks the figure, or measured something else under its name."""
    chosen = metric_of(metric)
    old, new = _values(before, chosen), _values(after, chosen)
    if not old or not new or not _are_alike(before, after, metric):
        return None
    return ratio_of_sets(old, new, higher_is_better=chosen.higher_is_better, floor=floor)


def floor_of(groups: Iterable[Sequence[tuple[Record, str]]], metric: str) -> Floor:
    """What runs apart differ by though nothing was changed: the most that the history shows of these very settings
    (``groups``) and one version of the engine, and `LEAST_FLOOR` at the least."""
    ratios = [LEAST_FLOOR]
    for found in groups:
        medians: dict[str | None, list[float]] = {}
        for record, arm in found:
            values = _values(record.samples_of(arm), metric_of(metric))
            if len(values) > 1:
                medians.setdefault(record.engine_version, []).append(median(values))
        ratios += [max(each) / min(each) for each in medians.values()]
    return Floor(max(ratios), "apart")


def differences_of(before: Record, after: Record) -> tuple[str, ...]:
    """What differs between two results beside the time: each a reason for the figures to differ too."""
    found = [
        ("model", before.model, after.model),
        ("engine", _engine(before), _engine(after)),
        ("workload", before.workload, after.workload),
        ("depth", f"{before.depth_tokens:,} tokens", f"{after.depth_tokens:,} tokens"),
        ("machine", _machine(before), _machine(after)),
        ("GPU driver", _drivers(before), _drivers(after)),
        ("length of prompts", _prompt(before), _prompt(after)),
    ]
    texts = [f"{name}: {old}, then {new}" for name, old, new in found if old != new]
    return (*texts, *_knob_differences(before, after))


def disturbances_of(before: Record, after: Record) -> tuple[str, ...]:
    """What spoiled either of two results."""
    pairs = (("before", before), ("after", after))
    return tuple(f"{name}: {note}" for name, record in pairs for note in record.disturbed)


def _knob_differences(before: Record, after: Record) -> Iterator[str]:
    for arm in before.arms:
        old, new = before.knobs.get(arm), after.knobs.get(arm)
        if old is None or new is None:
            continue
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield f"{name} of {arm}: {old.get(name)}, then {new.get(name)}"


def _engine(record: Record) -> str:
    return f"{record.backend} {record.engine_version or 'of an unknown version'}"


def _machine(record: Record) -> str:
    return record.machine or "unknown"


def _drivers(record: Record) -> str:
    try:
        gpus = Facts.model_validate(record.facts).gpus or ()
    except ValueError:
        return "unknown"
    return ", ".join(sorted({gpu.driver_version for gpu in gpus if gpu.driver_version})) or "none"


def _prompt(record: Record) -> str:
    """Rounded to two digits: a few tokens more or less are no difference."""
    tokens = _prompt_tokens(record.samples)
    return "unknown" if tokens is None else f"{float(f'{tokens:.2g}'):,.0f} tokens"


def _values(samples: Sequence[Sample], metric: Metric) -> list[float]:
    return [value for sample in samples if (value := value_of(sample, metric)) is not None]


def _are_alike(before: Sequence[Sample], after: Sequence[Sample], metric: str) -> bool:
    if metric == "prefill" and _bases(before) != _bases(after):
        return False
    if metric not in _BY_PROMPT:
        return True
    old, new = _prompt_tokens(before), _prompt_tokens(after)
    if old is not None and new is not None and not 1 / _ALIKE <= new / old <= _ALIKE:
        return False
    return metric != "turn" or _answer_tokens(before) == _answer_tokens(after)


def _bases(samples: Sequence[Sample]) -> set[str]:
    return {sample.prefill_basis for sample in samples if sample.prefill_basis is not None}


def _prompt_tokens(samples: Sequence[Sample]) -> float | None:
    found = [s.prompt_tokens + (s.cached_prompt_tokens or 0) for s in samples if s.prompt_tokens]
    return median(found) if found else None


def _answer_tokens(samples: Sequence[Sample]) -> float | None:
    found = [sample.answer_tokens for sample in samples if sample.turn_s is not None]
    return median(found) if found else None
