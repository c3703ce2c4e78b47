"""How the page of a comparison looks: on a light screen, a dark one, and on paper."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "text": "#1b1f24",
    "muted": "#57606a",
    "grid": "#d8dee4",
    "panel": "#f3f5f7",
    "floor": "#dde3e9",
    "faster": "#116329",
    "slower": "#a40e26",
    "same": "#57606a",
    "arm0": "#0550ae",
    "arm1": "#953800",
    "arm2": "#6639ba",
    "arm3": "#116329",
    "arm4": "#99286e",
    "arm5": "#57606a",
}
"""Colours by what they are for; each has at least 4.5:1 of contrast to the page where it carries meaning."""

DARK: Mapping[str, str] = {
    "page": "#0d1117",
    "text": "#e6edf3",
    "muted": "#9da7b3",
    "grid": "#30363d",
    "panel": "#161b22",
    "floor": "#2f3742",
    "faster": "#56d364",
    "slower": "#ff7b72",
    "same": "#9da7b3",
    "arm0": "#79c0ff",
    "arm1": "#ffa657",
    "arm2": "#d2a8ff",
    "arm3": "#56d364",
    "arm4": "#ff9bce",
    "arm5": "#9da7b3",
}

_RULES = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 82rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--grid); padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
header p { margin: 0; color: var(--muted); }
.verdicts { padding-left: 1.2rem; font-weight: 600; }
.notes { background: var(--panel); border-left: 4px solid var(--muted); padding: .1rem 1rem; margin: 1rem 0; }
.notes h3 { margin: .6rem 0 0; }
.notes ul { padding-left: 1.2rem; margin: .4rem 0 .8rem; }
figure { margin: 0 0 1.5rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
.hint { color: var(--muted); font-weight: 400; font-size: .875rem; margin: 0; }
.pair { display: grid; grid-template-columns: minmax(0, 600px) minmax(0, 1fr); gap: 1rem 2rem; align-items: start; }
.pair > * { min-width: 0; }
.pair.wide { grid-template-columns: minmax(0, 1fr); }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--arm0); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--muted); padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
th, td { max-width: 34rem; overflow-wrap: break-word; }
.pair th[scope="row"] { min-width: 8.8rem; }
.pair th, .pair td { padding-right: .7rem; }
.pair td:nth-child(2) { white-space: nowrap; }
svg { display: block; font: 14px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg text { fill: var(--text); }
svg .tick { fill: var(--muted); font-size: 12.5px; }
svg .head { font-weight: 600; stroke: var(--page); stroke-width: 4; paint-order: stroke; }
.grid { stroke: var(--grid); }
.one { stroke: var(--text); stroke-width: 1.5; }
.floor { fill: var(--floor); }
svg .faster { fill: var(--faster); }
svg .slower { fill: var(--slower); }
svg .same { fill: var(--same); }
.reach { stroke-width: 2.5; }
.reach.faster { stroke: var(--faster); }
.reach.slower { stroke: var(--slower); }
.reach.same { stroke: var(--same); }
svg .mark.same { fill: var(--page); stroke: var(--same); stroke-width: 2; }
.dot { fill: currentColor; fill-opacity: .45; stroke: currentColor; }
.far { fill: var(--page); stroke: currentColor; stroke-width: 2; }
.bar { stroke: currentColor; stroke-width: 5; stroke-opacity: .55; }
.median { stroke: currentColor; stroke-width: 3; }
.curve { stroke: currentColor; stroke-width: 2; }
.point { fill: currentColor; stroke: var(--page); }
.whole { fill: currentColor; }
.part { fill: currentColor; fill-opacity: .3; stroke: currentColor; }
@media (max-width: 74rem) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  svg, tr, .notes { break-inside: avoid; }
  h2, h3, figcaption, caption { break-after: avoid; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .scroll { overflow: visible; }
  svg { max-width: 100%; height: auto; }
}
"""


def _colours(values: Mapping[str, str]) -> str:
    return "".join(f" --{name}: {value};" for name, value in values.items())


def _arms() -> str:
    return "\n".join(f".arm{place} {{ color: var(--arm{place}); }}" for place in range(6))


STYLE = (
    f":root {{ color-scheme: light dark;{_colours(LIGHT)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{{_colours(DARK)} }} }}\n"
    f"{_arms()}{_RULES}"
)
"""Paper is always light."""
