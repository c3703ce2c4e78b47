"""Results that did not take turns: a wide floor, what else differs, and what a version of the engine changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from velollm.bench.apart import (
    LEAST_FLOOR,
    compare_records,
    differences_of,
    disturbances_of,
    floor_of,
    group,
    key_of,
)
from velollm.bench.conditions import Conditions
from velollm.bench.history import Record
from velollm.bench.samples import CrowdFigures, Sample
from velollm.bench.since import parse_version, since
from velollm.bench.stats import Ratio, ratio_of_sets, verdict_of
from velollm.bench.trend import change_of, find_trends, trends_of
from velollm.errors import UsageError
from velollm.report.bench_history import change_words, render_apart, trend_lines

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
values = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12)


def samples(pace: float = 1.0, rounds: int = 10, arm: str = "default", **more: Any) -> tuple[Sample, ...]:
    """Rounds that spread by 2% around 100 tokens/s of prefill, 20 of decode and 0.5 s of TTFT."""
    wobble = np.random.default_rng(3).normal(1.0, 0.02, rounds)
    fields: dict[str, Any] = {"prompt_tokens": 64, "answer_tokens": 32, "prefill_basis": "engine", **more}
    return tuple(
        Sample(
            arm,
            "chat",
            number,
            0,
            prefill_tokens_per_s=100 * pace * w,
            decode_tokens_per_s=20 * w,
            ttft_s=0.5 / (pace * w),
            **fields,
        )
        for number, w in enumerate(wobble)
    )


def record(day: int, version: str | None = "0.32.1", found: tuple[Sample, ...] | None = None, **more: Any) -> Record:
    given: dict[str, Any] = {
        "id": f"202603{day:02}-120000-00000{day % 10}",
        "taken_at": (START + timedelta(days=day - 1)).isoformat(timespec="seconds"),
        "model": "llama3.2",
        "backend": "ollama",
        "workload": "chat",
        "quick": False,
        "facts": {"gpus": [{"driver_version": "570.1"}]},
        "knobs": {"default": {"threads": 4}},
        "samples": samples() if found is None else found,
        "engine_version": version,
        "machine": "Ryzen 5",
        "digests": {"default": "sha256-1"},
    }
    return Record.model_validate({**given, **more})


# The interval of a ratio between two runs


def test_two_runs_of_the_same_are_hardly_ever_told_apart() -> None:
    rng = np.random.default_rng(11)
    held, false, trials = 0, 0, 400
    for _ in range(trials):
        count = int(rng.integers(3, 20))
        before, after = np.exp(rng.normal(0, 0.1, count)), 1.1 * np.exp(rng.normal(0, 0.1, count + 2))
        ratio = ratio_of_sets(list(before), list(after), higher_is_better=True)
        assert ratio.low is not None and ratio.high is not None
        held += ratio.low <= 1.1 <= ratio.high
        false += verdict_of(ratio_of_sets(list(before), list(after / 1.1), higher_is_better=True).interval) == "faster"
    assert held / trials >= 0.94
    assert false / trials <= 0.035


@given(values, values, st.booleans())
def test_turning_two_runs_round_inverts_their_ratio(before: list[float], after: list[float], higher: bool) -> None:
    there, back = (ratio_of_sets(*sides, higher_is_better=higher) for sides in ((before, after), (after, before)))
    assert there.estimate is not None and back.estimate is not None
    assert math.isclose(there.estimate * back.estimate, 1, rel_tol=1e-9)
    assert (there.low is None) == (min(len(before), len(after)) < 3)
    if there.low is not None and there.high is not None:
        assert there.low <= there.estimate * (1 + 1e-9) and there.high >= there.estimate * (1 - 1e-9)


def test_nothing_proves_nothing() -> None:
    assert ratio_of_sets([], [1.0], higher_is_better=True) == Ratio(None, None, None, "no difference", 0)


# Two results


def compared(before: Record, after: Record, *known: Record) -> Mapping[str, Ratio]:
    (found,) = compare_records(before, after, known)
    return found.ratios


def test_a_tenth_is_nothing_where_runs_did_not_take_turns() -> None:
    assert compared(record(1), record(2, found=samples(0.93)))["prefill"].verdict == "no difference"
    ratio = compared(record(1), record(2, found=samples(0.8)))["prefill"]
    assert (ratio.verdict, ratio.floor, ratio.floor_basis) == ("slower", LEAST_FLOOR, "apart")
    assert compared(record(1), record(2, found=samples(1.3)))["ttft"].verdict == "faster"


def test_runs_of_the_same_settings_widen_the_floor() -> None:
    known = [
        record(1),
        record(2, found=samples(1.5)),
        record(3, "0.31.0", samples(9.0)),
        record(4, None, samples(99.0)),
    ]
    floor = floor_of(group(known).values(), "prefill")
    assert floor.ratio == pytest.approx(1.5)
    assert floor_of(group(known).values(), "decode").ratio == LEAST_FLOOR
    other = record(5, machine="another", found=samples(20.0))
    assert compared(known[0], known[2], *known, other)["prefill"].floor == floor.ratio
    assert compared(known[0], record(6, "0.33.0", samples(0.7)), *known)["prefill"].verdict == "no difference"


def test_only_like_is_compared_with_like() -> None:
    longer = compared(record(1), record(2, found=samples(prompt_tokens=256)))
    assert set(longer) == {"decode"}
    other_clock = compared(record(1), record(2, found=samples(prefill_basis="client")))
    assert set(other_clock) == {"decode", "ttft"}
    cached = compared(record(1), record(2, found=samples(prompt_tokens=4, cached_prompt_tokens=60)))
    assert "ttft" in cached
    turns = [samples(answer_tokens=n, turn_s=3.0) for n in (32, 64)]
    assert "turn" not in compared(record(1, found=turns[0]), record(2, found=turns[1]))
    assert "turn" in compared(record(1, found=turns[0]), record(2, found=turns[0]))


def test_crowds_are_compared_in_the_order_of_their_number() -> None:
    crowds = tuple(CrowdFigures(users, 10.0, 1.0, 0.9) for users in (10, 2))
    found = compared(record(1, found=samples(crowds=crowds)), record(2, found=samples(crowds=crowds)))
    names = [name for name in found if name.startswith("aggregate")]
    assert names == ["aggregate_2", "aggregate_10"]


def test_arms_of_other_names_are_compared_by_their_place() -> None:
    (found,) = compare_records(record(1), record(2, found=samples(arm="mine"), knobs={"mine": {"threads": 4}}))
    assert found.arm == "default, mine"
    assert found.ratios["decode"].estimate == pytest.approx(1.0)
    assert compare_records(record(1), record(2, found=(), knobs={})) == ()


def test_the_control_counts_as_the_first_arm() -> None:
    both = (*samples(), *samples(2.0, arm="default-control"))
    (found,) = compare_records(record(1, found=both), record(2))
    assert found.before.summary["prefill"].values == 20


def test_what_else_differs_is_said() -> None:
    assert differences_of(record(1), record(2)) == ()
    changed = record(
        2,
        "0.33.0",
        samples(prompt_tokens=256),
        facts={"gpus": [{"driver_version": "580.2"}]},
        knobs={"default": {"threads": 2, "slots": 4}},
        workload="code",
    )
    assert differences_of(record(1), changed) == (
        "engine: ollama 0.32.1, then ollama 0.33.0",
        "workload: chat, then code",
        "GPU driver: 570.1, then 580.2",
        "length of prompts: 64 tokens, then 260 tokens",
        "threads of default: 4, then 2",
        "slots of default: None, then 4",
    )
    assert "GPU driver: 570.1, then unknown" in differences_of(record(1), record(2, facts={"unheard": 1}))


# Versions of the engine


def test_a_new_version_that_is_slower_is_told() -> None:
    slower = record(9, "0.33.0", samples(0.75))
    (trend,) = find_trends([record(1), record(2), slower])
    assert (trend.before, trend.after, trend.runs, trend.newest) == ("0.32.1", "0.33.0", (2, 1), slower.id)
    assert set(trend.changed) == {"prefill", "ttft"}
    lines = trend_lines([trend])
    assert lines[0].startswith("prefill fell 25% (")
    assert lines[0].endswith("since Ollama 0.32.1 (llama3.2, chat, 'default', now 0.33.0).")
    assert lines[1].startswith("TTFT rose 33% (")
    assert "nothing below 10% is called a change" in lines[2]
    assert trends_of([record(1)], slower) == find_trends([record(1), slower])
    assert trends_of([record(1), slower, record(10, "0.34.0")], slower) != ()


def test_what_disturbed_a_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    busy = record(2).model_copy(update={"conditions": (Conditions(busy_cores=0.9), Conditions(on_battery=True))})
    told = disturbances_of(record(1), busy)
    assert [text.partition(":")[0] for text in told] == ["after", "after"]
    assert "took up to 0.9 cores" in told[0] and "battery" in told[1]
    unlike = record(2, found=samples(prompt_tokens=256))
    Console(width=200).print(render_apart(compare_records(record(1), unlike), (), told))
    shown = capsys.readouterr().out
    assert "unlike: prompts" in shown and "After: other programs" in shown


def test_no_change_is_not_told() -> None:
    (trend,) = find_trends([record(1), record(2, "0.33.0", samples(0.95))])
    assert trend.changed == {}
    assert trend_lines([trend]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"machine": None},
        {"digests": {"default": "sha256-2"}},
        {"digests": {}},
        {"knobs": {"default": {"threads": 2}}},
        {"workload": "code"},
        {"depth_tokens": 4096},
        {"backend": "llamacpp"},
        {"engine_version": None},
        {"incomplete": "it died"},
        {"origin": "imported"},
        {"conditions": (Conditions(busy_cores=0.9),)},
    ],
    ids=str,
)
def test_only_the_version_may_differ(change: dict[str, Any]) -> None:
    assert find_trends([record(1), record(2, "0.33.0", samples(0.5))])
    assert find_trends([record(1), record(2, "0.33.0", samples(0.5)).model_copy(update=change)]) == ()


def test_the_version_before_is_the_one_that_was_measured_before() -> None:
    went_back = [record(1, "0.31.0"), record(2, "0.33.0"), record(3, "0.32.1"), record(4, "0.33.0", samples(0.5))]
    (trend,) = find_trends(went_back)
    assert (trend.before, trend.after, trend.runs) == ("0.32.1", "0.33.0", (1, 2))
    (trend,) = find_trends(went_back, went_back)
    assert (trend.before, trend.after) == ("0.31.0", "0.33.0")


def test_of_two_models_each_has_its_own_trend() -> None:
    def both(day: int, version: str, pace: float) -> Record:
        found = (*samples(pace), *samples(arm="other"))
        digests = {"default": "sha256-1", "other": "sha256-2"}
        return record(day, version, found, knobs={"default": {}, "other": {}}, digests=digests)

    found = find_trends([both(1, "0.32.1", 1.0), both(2, "0.33.0", 2.0)])
    assert [(trend.arm, sorted(trend.changed)) for trend in found] == [("default", ["prefill", "ttft"]), ("other", [])]


def test_a_key_needs_machine_and_model() -> None:
    assert key_of(record(1), "default") == key_of(record(2, "0.99.0"), "default")
    assert key_of(record(1), "tuned") is None


@given(st.floats(0.01, 100), st.booleans())
def test_a_change_is_that_of_the_figure_itself(factor: float, higher: bool) -> None:
    before, after = [1.0, 1.01, 0.99, 1.0], [factor, 1.01 * factor, 0.99 * factor, factor]
    change, low, high = change_of(ratio_of_sets(before, after, higher_is_better=higher), higher_is_better=higher)
    assert change == pytest.approx(factor - 1)
    assert low is not None and high is not None
    assert low <= change + 1e-9 and change <= high + 1e-9


def test_changes_in_words() -> None:
    assert change_words("decode", Ratio(0.82, 0.79, 0.85, "slower", 9)) == "decode fell 18% (15% to 21%)"
    assert change_words("ttft", Ratio(1.25, 1.2, 1.3, "faster", 9)) == "TTFT fell 20% (17% to 23%)"
    assert change_words("ttft", Ratio(0.5, None, None, "no difference", 2)) == "TTFT rose 100%"


# Since when


RECORDS = [record(1, "0.31.0"), record(2, "0.32.1"), record(3, "0.33.0-rc2"), record(4, "0.33.0"), record(5, None)]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2026-03-03", [3, 4, 5]),
        ("2026-03-03T13:00+00:00", [4, 5]),
        ("2d", [3, 4, 5]),
        ("1w", [1, 2, 3, 4, 5]),
        ("36h", [4, 5]),
        ("90m", [5]),
        ("0.32", [2, 3, 4]),
        ("v0.33.0", [4]),
        ("0.33.0-rc2", [3, 4]),
        ("1", []),
    ],
)
def test_since(text: str, days: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = since(RECORDS, text, START + timedelta(days=4))
    assert [int(item.id[6:8]) for item in found] == days


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "-3d", "1e999", "0x7", "b", "9" * 50])
def test_what_is_no_time_and_no_version(text: str) -> None:
    with pytest.raises(UsageError, match="--since takes"):
        since(RECORDS, text, START)


@given(st.text(max_size=12))
def test_any_text_is_a_time_a_version_or_an_error(text: str) -> None:
    try:
        since(RECORDS, text, START)
    except UsageError:
        return


def test_versions_are_ordered_by_number() -> None:
    ordered = ["0.9.0", "0.32.1", "0.33.0-rc1", "0.33.0-rc2", "0.33.0", "2026.10.1", "b10488"]
    found = [parse_version(text) for text in ordered]
    assert None not in found
    assert found == sorted(found, key=lambda version: version or ((), 0, 0))
    assert parse_version("") is None
