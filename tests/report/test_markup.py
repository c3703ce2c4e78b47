"""What is not markup is escaped."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from velollm.report.markup import Markup, element, join, shorten


@given(st.text(max_size=80))
def test_any_text_is_one_text_and_one_attribute(text: str) -> None:
    found = ET.fromstring(element("p", text, class_=text, aria_label=text))
    assert set(found.attrib) == {"class", "aria-label"}
    assert list(found) == []
    seen = found.text or ""
    assert len(seen) == len(text)
    assert all(one in (other, "\ufffd") for one, other in zip(seen, text, strict=True))


def test_elements_nest_and_none_is_left_out() -> None:
    made = element("p", element("b", "a<b"), " & ", id="x", title=None, width=2.0, height=1.25)
    assert made == '<p id="x" width="2" height="1.2"><b>a&lt;b</b> &amp; </p>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert join("<", Markup("<br>"), between="-") == "&lt;-<br>"


@given(st.text(max_size=60), st.integers(4, 40))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    found = shorten(text, columns)
    assert sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in found) <= columns
    assert found == " ".join(found.split()) or found.endswith("\u2026")


def test_only_what_is_too_long_is_cut() -> None:
    assert shorten("default-control", 20) == "default-control"
    assert shorten("a name that is long", 10) == "a name th\u2026"
    assert shorten("\u6a21\u578b\u6a21\u578b\u6a21\u578b", 6) == "\u6a21\u578b\u2026"
