"""Flights on a terminal: in one line, and whole."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.report.test_terminal import FLIGHT, shown
from velollm.journal import Change, Flight, FlightMeta
from velollm.report.documents import flight_fields
from velollm.report.flights import render_flight, render_history
from velollm.targets.base import State

DETAILS = {
    "schema": 2,
    "kind": "optimize",
    "profile": "code",
    "reason": "ttft is 1.40 times as good",
    "plan": [
        {"knob": "threads", "value": 4, "default": 8, "reason": "a core is busy", "basis": "measured"},
        {"knob": "slots", "value": 1, "default": 1, "reason": "one user", "basis": "profile"},
    ],
    "verdict": {
        "metric": "decode",
        "workload": "code",
        "rounds": 5,
        "arms": {
            "default": {"decode": {"estimate": 20.0, "low": 19.0, "high": 21.0}, "ttft": {"estimate": None}},
            "tuned": {"decode": {"estimate": 28.0, "low": None, "high": None}},
        },
        "ratio": {"decode": {"estimate": 1.4, "low": 1.2, "high": 1.6, "verdict": "faster"}},
    },
}
WRITTEN = (
    Change(0, {"kind": "file"}, "/home/x/ollama.env", State(None), State(b"A=1\nB=2\n"), done=True),
    Change(
        1,
        {"kind": "ollama-model"},
        "Ollama model m:1b",
        State(b'{"original":"0123456789abcdef"}'),
        State(b'{"base":"0123456789abcdef","parameters":[["num_ctx","8192"]]}'),
        done=True,
        undone=True,
    ),
    Change(2, {"kind": "file"}, "/etc/x", State(b"\xff\xfe"), State(b"\xff"), conflict="it was changed since"),
    Change(3, {"kind": "file"}, "/etc/y", State(b"a", mode=0o600), State(b"a", mode=0o644), done=True),
)


def flight(details: dict[str, object]) -> Flight:
    meta = FlightMeta("0.2.0", "ollama", "m:1b", "num_ctx=8192", details)  # type: ignore[arg-type]
    return replace(FLIGHT, meta=meta, changes=WRITTEN, complete=True)


def test_history_keeps_ids_whole() -> None:
    assert "No flights yet" in shown(render_history([]))
    text = shown(render_history([FLIGHT]), width=50)
    assert FLIGHT.id in text
    assert "m[1]" in text


def test_a_flight_is_shown_with_plan_verdict_and_what_was_written() -> None:
    text = shown(render_flight(flight(DETAILS)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "threads 4 8 a core is busy [measured]" in lines
    assert "decode tok/s * 20.0 (19.0-21.0) 28.0 1.40 (1.20-1.60) faster" in lines
    assert not any(line.startswith("TTFT") for line in lines)
    assert lines[lines.index("/home/x/ollama.env:") :][1:3] == ["+ A=1", "+ B=2"]
    model = lines[lines.index("Ollama model m:1b (undone):") :]
    assert model[1:4] == ["- original 0123456789ab", "+ base 0123456789ab", "+ PARAMETER num_ctx 8192"]
    assert "/etc/x (it was changed since):" in lines
    assert "- 2 bytes that are no text" in lines
    assert lines[lines.index("/etc/y:") + 1] == "only its mode or owner"


def test_an_entry_of_an_earlier_version_is_still_shown() -> None:
    text = shown(render_flight(flight({"profile": "chat", "reason": "because"})))
    assert "profile   chat" in text
    assert "The plan:" not in text
    assert "The verdict:" not in text
    assert "+ A=1" in text


def test_what_the_doctor_mended_is_named() -> None:
    assert "  one-slot: clients wait" in shown(render_flight(flight({"findings": ["one-slot: clients wait"]})))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["decode", "x"]), inner, max_size=2),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["plan", "verdict", "findings", "profile", "arms", "ratio"]), JSON, max_size=4))
def test_details_of_any_shape_are_shown_as_far_as_they_go(details: dict[str, object]) -> None:
    assert FLIGHT.id in shown(render_flight(flight(details)))


@given(JSON, JSON)
def test_verdicts_of_any_shape_are_shown_as_far_as_they_go(arms: object, ratio: object) -> None:
    assert FLIGHT.id in shown(render_flight(flight({"verdict": {"arms": arms, "ratio": ratio}})))


def test_the_document_tells_before_and_after() -> None:
    first, _, third, _ = flight_fields(flight(DETAILS))["changes"]
    assert (first["place"], first["before"], first["after"]) == ("/home/x/ollama.env", None, "A=1\nB=2\n")
    assert (first["written"], first["undone"], first["conflict"]) == (True, False, None)
    assert (third["before"], third["conflict"]) == (None, "it was changed since")
