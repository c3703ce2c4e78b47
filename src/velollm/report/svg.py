"""Parts of pictures: scales with round ticks, marks that differ in shape, and the frame that says what is seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from velollm.report.markup import Markup, element, join

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_RATIO_TICKS = (0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0)
_LOG_FROM = 12.0
SHAPES = ("circle", "square", "triangle", "diamond", "down", "bar")
"""One shape an arm, so that arms are told apart without colours."""


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on a line from ``start`` to ``end``; values beyond are held at its ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values within."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            # Labels have room for about nine.
            factors = (1, 2, 5) if len(decades) <= 4 else (1,)
            found = [factor * 10.0**decade for decade in decades[:: math.ceil(len(decades) / 9)] for factor in factors]
            return tuple(value for value in found if self.low <= value <= self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return tuple(n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1))


def value_scale(values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Scale:
    """A scale over positive values with some air around them; logarithmic where they differ more than twelvefold.

    ``zero``: from zero on, and never logarithmic.
    """
    found = list(values)
    low, high = min(found), max(found)
    if zero:
        return Scale(0.0, high * 1.05, start, end)
    if high / low > _LOG_FROM:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    air = max(high - low, 0.02 * high) * 0.08
    return Scale(low - air, high + air, start, end)


def ratio_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """A logarithmic scale around 1, so that twice and half are equally far from it."""
    found = [1.0, *values]
    low, high = min(*found, 0.94) / 1.02, max(*found, 1.06) * 1.02
    return Scale(low, high, start, end, log=True)


def ratio_ticks(scale: Scale) -> tuple[float, ...]:
    """Ratios that people know, as many as have room: 1 always, the others from there outward."""
    found = [value for value in _RATIO_TICKS if scale.low <= value <= scale.high] if scale.high <= 12 else []
    found = found or [1.0, *(10.0**power for power in range(-6, 7) if power and scale.low <= 10.0**power <= scale.high)]
    kept = [1.0]
    for value in sorted(found, key=lambda value: -abs(math.log(value))):
        if all(abs(scale(value) - scale(other)) >= 44 for other in kept):
            kept.append(value)
    return tuple(sorted(kept))


def number(value: float) -> str:
    """A value in three digits that count, or more where it is large."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.2e}"


def tick(value: float) -> str:
    """A round value in as few digits as it needs."""
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def picture(key: str, title: str, description: str, size: tuple[float, float], *content: str) -> Markup:
    """An SVG of a width and height that says what it shows; ``key`` makes its identifiers unique on the page."""
    width, height = size
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def label(x: float, y: float, text: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """Text at a place; ``anchor``: which of its ends lies there."""
    return element("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A filled rectangle."""
    return element("rect", x=x, y=y, width=max(width, 0.0), height=height, class_=class_)


def axis(scale: Scale, top: float, bottom: float, *, ticks: Sequence[float], unit: str = "") -> Markup:
    """Vertical lines at the ticks with their values below, and the unit behind the last one."""
    lines = [line(scale(value), top, scale(value), bottom, "grid") for value in ticks]
    texts = [label(scale(value), bottom + 16, tick(value), anchor="middle", class_="tick") for value in ticks]
    name = [label(scale.end, bottom + 32, unit, anchor="end", class_="tick")] if unit else []
    return join(*lines, *texts, *name)


def mark(shape: str, x: float, y: float, class_: str, size: float = 5.0) -> Markup:
    """A mark of one of `SHAPES` around a place."""
    r = size
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=r, class_=class_)
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r)),
        "down": ((0, 1.2 * r), (1.2 * r, -r), (-1.2 * r, -r)),
        "diamond": ((0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)),
        "bar": ((-1.3 * r, -r / 2), (1.3 * r, -r / 2), (1.3 * r, r / 2), (-1.3 * r, r / 2)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, class_=class_)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in _STEPS if step * power >= least * 0.999), 10 * power)
