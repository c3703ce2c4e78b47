from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from velollm.apply import Conflict, UndoResult
from velollm.bench.result import BenchResult, render_result
from velollm.bench.samples import METRICS, Sample
from velollm.bench.sizes import Sizes
from velollm.journal import Flight, FlightMeta
from velollm.knobs import Choice
from velollm.plan import Change, Plan, load_profile
from velollm.report.terminal import (
    render_choices,
    render_comparison,
    render_diff,
    render_explanation,
    render_knobs,
    render_undo,
    render_value,
)

SWINGS = (1.0, 1.01, 0.99, 1.02, 0.98)
FLIGHT = Flight("20260101-120000-abcd", "2026-01-01T12:00:00+00:00", FlightMeta("0.1.0", "embedded", "m[1]", "slots=2"))


def shown(renderable: RenderableType, width: int = 80) -> str:
    """What a terminal of that width shows, without the blanks at line ends."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return "\n".join(line.rstrip() for line in lines)


def sample(arm: str, number: int, pace: float, **more: Any) -> Sample:
    figures: dict[str, Any] = {
        "ttft_s": 0.5 / pace,
        "prefill_tokens_per_s": 200.0 * pace,
        "decode_tokens_per_s": 20.0 * pace,
        "aggregate_4_tokens_per_s": 30.0 * pace,
        "worst_ttft_4_s": 1.5 / pace,
        "peak_memory_bytes": 1024**3,
    }
    return Sample(arm, "chat", number, 0, **(figures | more))


def result(tuned_pace: float = 2.0, **more: Any) -> BenchResult:
    runs = [sample("default", n, swing, **more) for n, swing in enumerate(SWINGS)]
    runs += [sample("tuned", n, swing * tuned_pace, **more) for n, swing in enumerate(reversed(SWINGS))]
    sizes = Sizes(0, 5, 256, 64, 6.0, 0, 0, 0)
    return BenchResult(
        "chat", ("default", "tuned"), "default", "tuned", tuple(runs), sizes, ("a [note]",), 9, 20, quick=False
    )


def test_comparison_with_what_is_set_now() -> None:
    found = result()
    now = tuple(sample("current", n, swing * 4) for n, swing in enumerate(SWINGS))
    text = shown(render_comparison(replace(found, arms=("default", "current", "tuned"), runs=(*found.runs, *now))))
    first, _, second = text.partition("Against what is set now:")
    assert (first.count("faster"), second.count("slower")) == (5, 5)
    assert second.split()[:2] == ["now", "plan"]


def test_one_arm_alone_has_no_ratio() -> None:
    runs = tuple(sample("current", n, swing) for n, swing in enumerate(SWINGS))
    text = shown(render_comparison(replace(result(), arms=("current",), runs=runs)))
    assert text.split()[0] == "now"
    assert "20.0 (" in text
    assert "ratio" not in text
    assert "verdict" not in text


def test_comparison_shows_every_figure_with_its_interval_and_verdict() -> None:
    text = " ".join(shown(render_comparison(result())).split())
    for words in ("TTFT s", "prefill tok/s", "decode tok/s", "4 users, total", "4 users, worst", "peak memory"):
        assert words in text
    assert text.count("faster") == 5
    assert "20.0" in text
    assert "40.0" in text
    assert text.count("1.0 GiB") == 2
    assert "a [note]" in text


def test_the_first_token_of_the_answer_has_a_row_where_a_model_thinks() -> None:
    plain, thinking = result(), result(answer_ttft_s=3.0)
    assert "answer" not in shown(render_comparison(plain))
    assert set(json.loads(json.dumps(render_result(plain)))["ratio"]) == set(METRICS)
    assert " answer TTFT s 3.00 " in " ".join(shown(render_comparison(thinking)).split())
    found = json.loads(json.dumps(render_result(thinking)))
    assert found["summary"]["tuned"]["answer_ttft"]["estimate"] == pytest.approx(3.0)
    assert list(found["ratio"])[:2] == ["ttft", "answer_ttft"]
    assert found["runs"][0]["answer_ttft_s"] == 3.0


@pytest.mark.parametrize(("pace", "verdict"), [(0.5, "slower"), (1.0, "no difference")])
def test_comparison_verdicts(pace: float, verdict: str) -> None:
    assert shown(render_comparison(result(pace))).count(verdict) == 5


def test_unknown_is_said_and_nothing_is_cut_off() -> None:
    text = shown(render_comparison(result(ttft_s=None, peak_memory_bytes=None)))
    assert text.splitlines()[1].split() == ["TTFT", "s", "unknown", "unknown", "unknown", "no", "difference"]
    wide = result()
    runs = [replace(run, prefill_tokens_per_s=10 ** (3 + run.round)) for run in wide.runs]
    text = shown(render_comparison(replace(wide, runs=tuple(runs))))
    assert "…" not in text
    assert text.count("100000") >= 2


def plan(*changes: Change) -> Plan:
    choices = (
        Choice("threads", 1, "others keep 1 of 2 cores busy", "arithmetic"),
        Choice("keep_alive_s", 1800, "the profile wants [that]", "table"),
        Choice("load_mode", None, "not known", "unknown"),
    )
    defaults = {"threads": 2, "keep_alive_s": 300, "load_mode": None}
    return Plan("embedded", load_profile("chat"), choices, defaults, changes=changes)


def test_choices_show_value_default_and_reason() -> None:
    lines = shown(render_choices(plan())).splitlines()
    assert lines[0].split() == ["knob", "value", "default", "why"]
    assert lines[1].split()[:3] == ["threads", "1", "2"]
    assert lines[1].endswith("others keep 1 of 2 cores busy [arithmetic]")
    assert "30m00s" in lines[2]
    assert lines[2].endswith("the profile wants [that] [table]")
    assert lines[3].split()[:3] == ["load_mode", "engine's", "engine's"]


def test_diff_groups_by_place_and_gives_reasons() -> None:
    changes = (
        Change("environment", "LLAMA_ARG_THREADS", "2", "1", "busy neighbours", "arithmetic"),
        Change("engine", "slots", None, "4", "you asked for it with --set", "user"),
        Change("environment", "LLAMA_ARG_BATCH", "64", None, "no longer wanted", "table"),
    )
    assert shown(render_diff(plan(*changes), lambda kind: f"/home/{kind}")).splitlines() == [
        "/home/environment:",
        "- LLAMA_ARG_THREADS=2",
        "+ LLAMA_ARG_THREADS=1",
        "    busy neighbours [arithmetic]",
        "- LLAMA_ARG_BATCH=64",
        "    no longer wanted [table]",
        "/home/engine:",
        "+ slots=4",
        "    you asked for it with --set [user]",
    ]
    assert shown(render_diff(plan(), str)).startswith("No change")


def test_undo_says_what_it_did() -> None:
    assert shown(render_undo(UndoResult(None))) == "Nothing to undo."
    assert "was undone before" in shown(render_undo(UndoResult(FLIGHT, already=True)))
    text = shown(render_undo(UndoResult(FLIGHT, ("/a/engine.env",), (Conflict("/b/engine.yaml", "changed since"),))))
    assert text.splitlines() == [
        "Flight 20260101-120000-abcd (m[1]) is undone as far as it was ours.",
        "  restored   /a/engine.env",
        "  left alone /b/engine.yaml: changed since",
    ]


def test_values_for_people() -> None:
    assert [render_value("keep_alive_s", v) for v in (1800, -1, None)] == ["30m00s", "for ever", "engine's"]
    assert render_value("threads", 4) == "4"
    assert shown(render_knobs({"threads": 4, "keep_alive_s": -1})) == "threads=4, keep_alive_s=for ever"


def test_explanation_has_no_markup_of_its_own() -> None:
    facts = {
        "knob": "k[red]",
        "unit": "type",
        "summary": "a [bold]summary[/bold]",
        "explain": "Because [x].",
        "choices": ["a", "b"],
        "purpose": "speed",
        "changes_answer": True,
        "rule": "some-rule",
        "rule_doc": "First\nline.\n\nSecond.",
    }
    lines = shown(render_explanation(facts)).splitlines()
    assert lines[0] == "k[red] (type): a [bold]summary[/bold]"
    assert "Values: a, b." in lines
    assert "It can change answers, so only your own --set turns it." in lines
    assert lines[-3:] == ["Rule some-rule:", "First line.", "Second."]
