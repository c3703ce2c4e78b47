"""Pictures of a comparison, each with a table that says the same in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from velollm.bench.result import BenchResult
from velollm.bench.samples import Metric, metric_of, value_of
from velollm.bench.stats import Ratio, Verdict, outliers_of, summarise
from velollm.report.bench_text import buffers_of, metric_title, render_ratio
from velollm.report.markup import Markup, element, join, shorten
from velollm.report.svg import (
    SHAPES,
    Scale,
    axis,
    box,
    label,
    line,
    mark,
    number,
    picture,
    ratio_scale,
    ratio_ticks,
    tick,
    value_scale,
)
from velollm.units import render_bytes

_VERDICT_MARKS: Mapping[Verdict, tuple[str, str]] = {
    "faster": ("triangle", "faster"),
    "slower": ("down", "slower"),
    "no difference": ("circle", "same"),
}
_COLOURS = 6
_NAME_COLUMNS = 20  # longer names of arms stand above their rows, or below the picture
_NUDGES = (0.0, -5.0, 5.0, -2.5, 2.5)  # rounds beside each other get dots that lie apart


def render_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first column names its rows."""
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element("tr", element("th", cells[0], scope="row"), *(element("td", text) for text in cells[1:]))
        for cells in rows
    ]
    table = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex="0")


def render_forest(result: BenchResult, key: str) -> Markup | None:
    """Every arm's ratios to the first one, on one scale; None where there is nothing to compare."""
    groups = {
        arm: {metric: ratio for metric, ratio in ratios.items() if _is_shown(ratio.estimate)}
        for arm, ratios in result.against.items()
    }
    ratios = [ratio for found in groups.values() for ratio in found.values()]
    if not ratios:
        return None
    scale = ratio_scale(_ends(ratios), 190, 620)
    fields: list[Markup] = []
    parts: list[Markup] = []
    y = 10.0
    for arm, found in groups.items():
        parts.append(label(0, y + 14, shorten(f"{arm} against {result.default}", 100), class_="head"))
        y += 28
        for metric, ratio in found.items():
            if ratio.floor is not None and _is_shown(ratio.floor):
                left, right = scale(1 / ratio.floor), scale(ratio.floor)
                fields.append(box(left, y - 2, right - left, 20, "floor"))
            parts.append(_ratio_row(scale, y, metric, ratio))
            y += 26
    frame = [
        *fields,
        axis(scale, 26, y, ticks=ratio_ticks(scale)),
        line(scale(1.0), 26, scale(1.0), y, "one"),
        label(scale.start, y + 34, "\u2190 worse", class_="tick"),
        label(scale.end, y + 34, "better \u2192", anchor="end", class_="tick"),
    ]
    title = f"Ratios to {result.default}"
    words = "; ".join(
        f"{arm}, {metric_title(metric)[0]}: {render_ratio(ratio)}, {ratio.verdict}"
        for arm, found in groups.items()
        for metric, ratio in found.items()
    )
    drawn = picture(key, title, f"Above 1 is better. {words}.", (880, y + 40), *frame, *parts)
    rows = [
        [metric_title(metric)[0], arm, render_ratio(ratio), _floor(ratio), str(ratio.pairs), ratio.verdict]
        for arm, found in groups.items()
        for metric, ratio in found.items()
    ]
    heads = ["figure", "arm", "ratio (95%)", "noise", "rounds", "verdict"]
    hint = (
        "Above 1 is better, for times too. The bar is the 95% interval, the grey field the machine's own noise. "
        "A triangle stands for a difference that is proved, a ring for none."
    )
    return _figure(title, drawn, render_table(title, heads, rows), hint=hint, wide=True)


def _ratio_row(scale: Scale, y: float, metric: str, ratio: Ratio) -> Markup:
    estimate, middle = ratio.estimate or 1.0, y + 8
    parts = [label(12, y + 12, metric_title(metric)[0])]
    shape, class_ = _VERDICT_MARKS[ratio.verdict]
    if ratio.low is not None and ratio.high is not None:
        parts.append(line(scale(ratio.low), middle, scale(ratio.high), middle, f"reach {class_}"))
        # An end that lies beyond the picture has no bar across.
        ends = [scale(end) for end in (ratio.low, ratio.high) if scale.low <= end <= scale.high]
        parts += [line(end, middle - 4, end, middle + 4, f"reach {class_}") for end in ends]
    parts.append(mark(shape, scale(estimate), middle, f"mark {class_}", 5.5))
    parts.append(label(636, y + 12, f"{render_ratio(ratio)} {ratio.verdict}", class_=class_))
    return join(*parts)


def _ends(ratios: Sequence[Ratio]) -> list[float]:
    """What the scale has to hold: all estimates, and of intervals no more than threefold beyond them."""
    estimates = [ratio.estimate for ratio in ratios if ratio.estimate is not None]
    least, most = min(1.0, *estimates) / 3, max(1.0, *estimates) * 3
    others = [end for ratio in ratios for end in (ratio.low, ratio.high, ratio.floor) if _is_shown(end)]
    floors = [1 / ratio.floor for ratio in ratios if _is_shown(ratio.floor) and ratio.floor]
    return [*estimates, *(min(max(end, least), most) for end in (*others, *floors) if end is not None)]


def _floor(ratio: Ratio) -> str:
    return "unknown" if ratio.floor is None else f"{ratio.floor - 1:.1%} ({ratio.floor_basis})"


def render_samples(result: BenchResult, metric: str, key: str) -> Markup | None:
    """Every round's value of a figure, an arm a line, with the median and its interval; None without any."""
    chosen = metric_of(metric)
    arms = [*result.arms, *([result.control] if result.control else [])]
    title, unit = metric_title(metric)
    values = {arm: _values(result, arm, chosen, unit) for arm in arms}
    known = [value for found in values.values() for _, value in found]
    if not known:
        return None
    ends = [end for arm in arms for end in _interval(result, arm, metric, unit)[1:] if end is not None]
    least, most = min(known) / 1.5, max(known) * 1.5
    long = _have_long_names(arms)
    scale = value_scale([*known, *(min(max(end, least), most) for end in ends)], 12 if long else 160, 590)
    parts, y = [], 8.0
    for place, arm in enumerate(arms):
        far = {number for number, _ in outliers_of(result.runs, arm, metric)}
        row = [label(0, y + (10 if long else 22), shorten(arm, 80))]
        y += 20 if long else 0
        row += _dots(scale, values[arm], far, y + 16)
        row += _median(scale, _interval(result, arm, metric, unit), y + 32)
        parts.append(element("g", *row, class_=f"arm{min(place, len(result.arms)) % _COLOURS}"))
        y += 46
    frame = axis(scale, 4, y, ticks=scale.ticks, unit=f"{title}, {unit}" if unit else title)
    rows = [_sample_row(result, arm, metric, unit, values[arm]) for arm in arms]
    words = "; ".join(f"{row[0]}: median {row[1]} over {row[2]} rounds, from {row[4]}" for row in rows)
    better = "more is better" if chosen.higher_is_better else "less is better"
    caption = f"{title}{f' in {unit}' if unit else ''}, {better}"
    heads = ["arm", "median (95%)", "rounds", "spread", "least to most", "far out in round"]
    drawn = picture(key, caption, f"{words}.", (600, y + 38), frame, *parts)
    return _figure(caption, drawn, render_table(caption, heads, rows), wide=long)


def _values(result: BenchResult, arm: str, metric: Metric, unit: str) -> list[tuple[int, float]]:
    """An arm's values by round, in the unit that is shown."""
    found = [(sample.round, value_of(sample, metric)) for sample in result.runs if sample.arm == arm]
    return [(place, value * _factor(unit)) for place, value in sorted(found) if value is not None and _is_shown(value)]


def _interval(result: BenchResult, arm: str, metric: str, unit: str) -> tuple[float | None, float | None, float | None]:
    interval = summarise(result.runs, arm, metric)
    ends = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (None if end is None or not _is_shown(end) else end * _factor(unit) for end in ends)
    return estimate, low, high


def _dots(scale: Scale, values: Sequence[tuple[int, float]], far: set[int], y: float) -> list[Markup]:
    """One dot a round; those far out are diamonds under the round's number, as long as the numbers have room."""
    drawn: list[Markup] = []
    named: list[float] = []
    for place, (count, value) in enumerate(values):
        x = scale(value)
        if count not in far:
            drawn.append(mark("circle", x, y + _NUDGES[place % len(_NUDGES)], "dot", 4))
            continue
        drawn.append(mark("diamond", x, y, "far", 5))
        if all(abs(x - other) >= 22 for other in named):
            drawn.append(label(x, y - 9, str(count), anchor="middle", class_="tick"))
            named.append(x)
    return drawn


def _median(scale: Scale, interval: tuple[float | None, float | None, float | None], y: float) -> list[Markup]:
    estimate, low, high = interval
    drawn = [] if low is None or high is None else [line(scale(low), y, scale(high), y, "bar")]
    return drawn if estimate is None else [*drawn, line(scale(estimate), y - 6, scale(estimate), y + 6, "median")]


def _sample_row(
    result: BenchResult, arm: str, metric: str, unit: str, values: Sequence[tuple[int, float]]
) -> list[str]:
    interval = summarise(result.runs, arm, metric)
    found = [value for _, value in values]
    ends = f"{number(min(found))} to {number(max(found))}" if found else "unknown"
    far = ", ".join(str(place) for place, _ in outliers_of(result.runs, arm, metric))
    spread = "unknown" if interval.spread is None else f"{interval.spread:.1%}"
    median = _digits(*_interval(result, arm, metric, unit))
    return [arm, median, str(len(found)), spread, ends, far or "none"]


def render_crowd(result: BenchResult, kind: str, key: str) -> Markup | None:
    """A figure (``aggregate`` or ``worst_ttft``) over the number of users; None without users at once."""
    levels = sorted({crowd.users for sample in result.runs for crowd in sample.crowds})
    metrics = {users: metric_of(f"{kind}_{users}") for users in levels}
    _, unit = metric_title(f"{kind}_1")
    raw = {
        (arm, users): [value for _, value in _values(result, arm, metric, unit)]
        for arm in result.arms
        for users, metric in metrics.items()
    }
    known = [value for found in raw.values() for value in found]
    if not known:
        return None
    long = _have_long_names(result.arms)
    right = 580 if long else 440
    across = Scale(levels[0] / 1.25, levels[-1] * 1.25, 60, right, log=True)
    up = value_scale(known, 250, 14, zero=True)
    parts = [line(60, up(value), right, up(value), "grid") for value in up.ticks]
    parts += [label(52, up(value) + 4, tick(value), anchor="end", class_="tick") for value in up.ticks]
    parts += [label(across(users), 268, str(users), anchor="middle", class_="tick") for users in levels]
    parts += [label(right, 286, "users at once", anchor="end", class_="tick")]
    ends: list[tuple[float, int]] = []
    for place, arm in enumerate(result.arms):
        shift = (place - (len(result.arms) - 1) / 2) * 9
        drawn, last = _curve(result, arm, kind, unit, [(across(n) + shift, n) for n in levels], up, raw, place)
        parts.append(element("g", *drawn, class_=f"arm{place % _COLOURS}"))
        ends += [] if last is None else [(last, place)]
    names, height = _names(result.arms, ends)
    parts += names
    title = {"aggregate": "All users' tokens a second", "worst_ttft": "The longest TTFT of all users, in s"}[kind]
    rows = [_crowd_row(result, arm, kind, users, unit) for arm in result.arms for users in levels]
    heads = ["arm", "users", "median (95%)", *(["fairness"] if kind == "aggregate" else [])]
    words = "; ".join(f"{row[0]}, {row[1]} users: {row[2]}" for row in rows)
    drawn_all = picture(key, title, f"{words}.", (600, height), *parts)
    better = "more is better" if kind == "aggregate" else "less is better"
    hint = _saturation(result, levels) if kind == "aggregate" else None
    return _figure(f"{title}, {better}", drawn_all, render_table(title, heads, rows), hint=hint, wide=long)


def _saturation(result: BenchResult, levels: Sequence[int]) -> str | None:
    """From how many users on more of them add little; the last level was not gone beyond, so it tells nothing."""
    found = {arm: result.saturation(arm) for arm in result.arms if len(result.levels_of(arm)) > 1}
    words = [f"{arm} at {users} users" for arm, users in found.items() if users is not None]
    unseen = [arm for arm, users in found.items() if users is None]
    seen = [f"Saturated (more users add less than 5%): {', '.join(words)}."] if words else []
    none = [f"No saturation seen up to {levels[-1]} users: {', '.join(unseen)}."] if unseen else []
    return " ".join([*seen, *none]) or None


def _curve(
    result: BenchResult,
    arm: str,
    kind: str,
    unit: str,
    places: Sequence[tuple[float, int]],
    up: Scale,
    raw: Mapping[tuple[str, int], Sequence[float]],
    place: int,
) -> tuple[list[Markup], float | None]:
    """An arm's line with its raw values and intervals, and the height at which it ends."""
    drawn: list[Markup] = []
    last: tuple[float, float] | None = None
    for x, users in places:
        estimate, low, high = _interval(result, arm, f"{kind}_{users}", unit)
        drawn += [mark("circle", x, up(value), "dot", 2.5) for value in raw[arm, users]]
        if estimate is None:
            continue
        if low is not None and high is not None:
            drawn.append(line(x, up(low), x, up(high), "bar"))
        if last is not None:
            drawn.append(line(*last, x, up(estimate), "curve"))
        last = (x, up(estimate))
        drawn.append(mark(SHAPES[place % len(SHAPES)], x, up(estimate), "point", 5))
    return drawn, None if last is None else last[1]


def _names(arms: Sequence[str], ends: Sequence[tuple[float, int]]) -> tuple[list[Markup], float]:
    """Arms' names with their marks, and the picture's height.

    They stand beside the ends of the lines, moved apart where those are close; long names stand below the picture.
    """
    drawn, free, long = [], 310.0 if _have_long_names(arms) else 0.0, _have_long_names(arms)
    x = 20 if long else 460
    for height, place in sorted(ends, key=lambda end: (end[1], 0) if long else end):
        y = max(height, free)
        free = y + 20
        content = (mark(SHAPES[place % len(SHAPES)], x, y, "point", 5), label(x + 10, y + 4, shorten(arms[place], 70)))
        drawn.append(element("g", *content, class_=f"arm{place % _COLOURS}"))
    return drawn, max(free, 294.0)


def _have_long_names(arms: Sequence[str]) -> bool:
    return any(shorten(arm, _NAME_COLUMNS) != arm for arm in arms)


def _crowd_row(result: BenchResult, arm: str, kind: str, users: int, unit: str) -> list[str]:
    cells = [arm, str(users), _digits(*_interval(result, arm, f"{kind}_{users}", unit))]
    return [*cells, _digits(*_interval(result, arm, f"fairness_{users}", ""))] if kind == "aggregate" else cells


def render_memory(result: BenchResult, key: str) -> Markup | None:
    """What each arm's server held, and what its engine allocated, part after part; None where nobody tells."""
    rows = [(arm, name, start, size) for arm in result.arms for name, start, size in _memory_parts(result, arm)]
    if not rows:
        return None
    most = max(start + size for _, _, start, size in rows)
    scale = Scale(0.0, float(max(most, 1)), 150, 500)
    parts, y = [], 4.0
    for place, arm in enumerate(result.arms):
        own = [row for row in rows if row[0] == arm]
        parts.append(label(0, y + 14, shorten(arm, 80), class_="head"))
        y += 24
        for _, name, start, size in own:
            left, right = scale(start), scale(start + size)
            drawn = (
                label(12, y + 13, shorten(name, 18)),
                box(left, y + 2, max(right - left, 1), 14, "part" if name.startswith("- ") else "whole"),
                label(right + 6, y + 13, render_bytes(size), class_="value"),
            )
            parts.append(element("g", *drawn, class_=f"arm{place % _COLOURS}"))
            y += 22
        if not own:
            parts.append(label(12, y + 13, "unknown"))
            y += 22
    names = list(dict.fromkeys(row[1] for row in rows))
    sizes = {(arm, name): size for arm, name, _, size in rows}
    cells = [
        [name, *(render_bytes(sizes[arm, name]) if (arm, name) in sizes else "unknown" for arm in result.arms)]
        for name in names
    ]
    words = "; ".join(f"{arm}, {name}: {render_bytes(size)}" for arm, name, _, size in rows)
    title = "Memory"
    drawn_all = picture(key, title, f"{words}.", (600, y + 4), *parts)
    hint = "The most that the server's processes held; below it what the engine says it allocated, part after part."
    return _figure("Memory by arm", drawn_all, render_table(title, ["part", *result.arms], cells), hint=hint)


def _memory_parts(result: BenchResult, arm: str) -> list[tuple[str, int, int]]:
    """Name, where its bar starts, and bytes."""
    wholes = {"peak memory": result.peak_memory_bytes(arm), "peak VRAM": result.gpu_memory_bytes(arm)}
    found = [(name, 0, size) for name, size in wholes.items() if size is not None]
    start = 0
    for kind, size in buffers_of(result, arm).items():
        found.append((f"- {kind}", start, size))
        start += size
    return found


def _figure(caption: str, drawn: Markup, table: Markup, *, hint: str | None = None, wide: bool = False) -> Markup:
    seen = element("div", drawn, class_="scroll", role="region", aria_label=f"Picture: {caption}", tabindex="0")
    pair = element("div", seen, table, class_="pair wide" if wide else "pair")
    more = [element("p", hint, class_="hint")] if hint else []
    return element("figure", element("figcaption", caption, *more), pair)


def _digits(estimate: float | None, low: float | None, high: float | None) -> str:
    """A median with its interval in digits that fit its size: a page has room for more of them than a terminal."""
    if estimate is None:
        return "unknown"
    return number(estimate) if low is None or high is None else f"{number(estimate)} ({number(low)}-{number(high)})"


def _factor(unit: str) -> float:
    return 1000.0 if unit == "ms" else 1.0


def _is_shown(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
