"""HTML and SVG from values: whatever is not markup is escaped, so no text from outside can become any."""

from __future__ import annotations

import html
import re
import unicodedata

# Control characters, halves of surrogate pairs, and marks that turn the direction of the text behind them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup already. Only `element` and `join` make it."""

    __slots__ = ()


def element(name: str, /, *content: str, between: str = "", **attributes: str | float | None) -> Markup:
    """An element. ``content`` that is not `Markup` is escaped; ``between``: what parts its pieces.

    An attribute of None is left out.

    ``_`` in the name of an attribute stands for ``-``, and one at its end is dropped (``class_``).
    """
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    words = "".join(f' {key}="{_escape(_text(value))}"' for key, value in pairs)
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(*content, between=between)}</{name}>")


def join(*content: str, between: str = "") -> Markup:
    """Pieces one after the other; those that are not `Markup` are escaped."""
    return Markup(between.join(part if isinstance(part, Markup) else _escape(part) for part in content))


def raw(text: str) -> Markup:
    """Markup of our own: the style sheet, the document type. Nothing from outside may come here."""
    return Markup(text)


def shorten(text: str, columns: int) -> str:
    """The text in so many columns, with an ellipsis where it is cut; wide characters take two."""
    text = " ".join(_UNSAFE.sub("\ufffd", text).split())
    widths = [2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text]
    if sum(widths) <= columns:
        return text
    used, kept = 1, 0
    for width in widths:
        used += width
        if used > columns:
            break
        kept += 1
    return text[:kept] + "\u2026"


def _text(value: str | float) -> str:
    """Coordinates to a tenth of a unit."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _escape(text: str) -> str:
    return html.escape(_UNSAFE.sub("\ufffd", text), quote=True)
