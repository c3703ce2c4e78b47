from __future__ import annotations

import csv
import io

import pytest

from tests.bench.simulated import World
from velollm.bench.design import Design
from velollm.bench.result import BenchResult
from velollm.bench.run import Budget, run_bench
from velollm.bench.samples import Sample
from velollm.bench.sizes import Sizes
from velollm.bench.workload import load_workload
from velollm.report.bench_files import render_csv, render_markdown
from velollm.report.bench_text import figure_rows, render_noise


@pytest.fixture(scope="module")
def result() -> BenchResult:
    world = World()
    arms = [world.arm("default", slots=2, crowds=(2,)), world.arm("tuned", decode=60.0, slots=2, crowds=(2,))]
    design = Design(levels=(2,), control=True, whole=True)
    return run_bench(arms, load_workload("chat"), Budget(900.0), clock=world.clock, design=design)


def test_markdown_is_a_table_with_a_row_for_each_figure(result: BenchResult) -> None:
    text = render_markdown([result, result])
    assert text.count("## chat") == 2
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    rows = {line.split("|")[1].strip(): line for line in table}
    assert "faster" in rows["decode tok/s"]
    assert "60.0" in rows["decode tok/s"]
    assert "25.0" in rows["ITL p50 ms"]
    assert {"2 users, total tok/s", "2 users, fairness", "TTFT, cached s", "load s"} <= set(rows)
    assert "peak VRAM" not in rows


def test_csv_has_every_raw_sample(result: BenchResult) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv([result]))))
    single = [row for row in rows if row["users"] == "1"]
    assert len(single) == len(result.runs)
    assert {row["arm"] for row in single} == {"default", "tuned", "default-control"}
    assert float(single[0]["ttft_s"]) == result.runs[0].ttft_s
    pairs = [row for row in rows if row["users"] == "2"]
    assert len(pairs) == sum(len(sample.crowds) for sample in result.runs)
    assert all(float(row["users_tokens_per_s"]) > 0 for row in pairs)


def test_the_noise_is_said_in_a_line(result: BenchResult) -> None:
    assert "decode 0.0%" in (render_noise(result) or "")


def test_saturation_is_told_apart_from_none_that_was_seen() -> None:
    world = World()
    arms = [world.arm(name, slots=slots, crowds=(2, 4)) for name, slots in (("default", 1), ("tuned", 4))]
    design = Design(levels=(2, 4), whole=True)
    result = run_bench(arms, load_workload("chat"), Budget(900.0), clock=world.clock, design=design)
    rows = {row.title: row.arms for row in figure_rows(result)}
    assert rows["saturated at users"] == ("2", "not up to 4")
    titles = [title for title in rows if "users, " in title]
    assert [title[0] for title in titles] == ["2", "2", "2", "4", "4", "4"]


@pytest.mark.parametrize(
    ("ttft_s", "shown"),
    [(0.00912, "0.00912"), (0.0342, "0.0342"), (0.0999, "0.0999"), (0.1234, "0.12"), (12.3, "12.30")],
)
def test_short_times_have_three_digits_that_count(ttft_s: float, shown: str) -> None:
    runs = (Sample("default", "chat", 0, 0, ttft_s=ttft_s, cached_ttft_s=ttft_s),)
    sizes = Sizes(0, 1, 64, 32, 6.0, 0, 64, 32)
    result = BenchResult("chat", ("default",), "default", "tuned", runs, sizes, (), 1.0, 1.0, True)
    rows = {row.title: row.arms for row in figure_rows(result)}
    assert rows["TTFT s"] == rows["TTFT, cached s"] == (shown,)
