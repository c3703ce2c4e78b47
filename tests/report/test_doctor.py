"""What the doctor prints keeps its columns, however narrow the place is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from velollm.doctor.base import Evidence, Finding
from velollm.facts import Facts
from velollm.report.doctor import render_diagnosis, render_mending

LONG = "the engine waits for memory that another program holds, so each of its answers takes many times as long"
FINDING = Finding("swap", "warning", LONG, (Evidence("/proc/meminfo", LONG),), fix=LONG, why=LONG)


def printed(shown: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, emoji=False, color_system=None).print(shown)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 132])
def test_a_wrapped_line_begins_where_its_text_does(width: int) -> None:
    lines = printed(render_diagnosis(Facts(), [FINDING], [FINDING]), width)
    found = lines[lines.index("Most worth mending:") + 1 :]
    assert found[0].startswith("warning  the engine waits")
    assert all(line.startswith(" " * 9) and line[9] != " " for line in found[1:])
    assert max(map(len, found)) <= width
    assert all(line == line.rstrip() for line in found)
    told = " ".join(line[9:] for line in found)
    assert told == f"{LONG} {LONG} /proc/meminfo: {LONG} mend: {LONG} or: velollm doctor --fix"


def test_what_was_mended_keeps_its_column_too() -> None:
    lines = printed(render_mending(["/etc/x.conf"], [FINDING], [FINDING], "20261125-1"), 60)
    assert [line[:9] for line in lines if line[:1] not in ("", " ")] == [
        "Mended:",
        "wrote    ",
        "gone     ",
        "still    ",
        "`velollm ",
    ]
    assert all(line[9] != " " for line in lines if line.startswith(" "))
