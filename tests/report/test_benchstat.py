"""The text that Go's benchstat reads."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.test_apart import record, samples
from velollm.bench.samples import CrowdFigures
from velollm.report.benchstat import render_benchstat

# https://go.dev/design/14313-benchmark-format: a result line, a configuration line, and what a reader passes over.
RESULT = re.compile(r"Benchmark[A-Z]\S*(?<!-\d) [1-9]\d*(?: [0-9][0-9.e+-]* [^\s0-9]\S*)+")
CONFIG = re.compile(r"[a-z][^\s:A-Z]*: \S+")
UNIT = re.compile(r"Unit \S+ better=(?:higher|lower)")


def test_every_sample_has_a_line() -> None:
    crowds = (CrowdFigures(4, 30.0, 1.5, 0.9),)
    lines = render_benchstat([record(1, found=samples(crowds=crowds)), record(2)]).splitlines()
    results = [line for line in lines if line.startswith("Benchmark")]
    assert len(results) == 30
    assert all(RESULT.fullmatch(line) for line in results)
    assert results[1] == "BenchmarkChat/arm=default/depth=0/users=4 1 30 total-tok/s 1.5 worst-ttft-sec 0.9 fairness"
    assert "BenchmarkChat/arm=default/depth=0/users=1 1 " in results[0]
    units = [line for line in lines if line.startswith("Unit ")]
    assert all(UNIT.fullmatch(line) for line in units)
    named = {line.split()[1] for line in units}
    assert {unit for line in results for unit in line.split()[3::2]} <= named
    assert [line for line in lines if CONFIG.fullmatch(line)] == ["engine: ollama", "model: llama3.2"] * 2


def test_two_versions_are_no_two_configurations() -> None:
    old, new = (render_benchstat([record(day, version)]) for day, version in ((1, "0.32.1"), (2, "0.33.0")))
    configs = [[line for line in text.splitlines() if CONFIG.fullmatch(line)] for text in (old, new)]
    assert configs[0] == configs[1]
    assert "Engine ollama 0.33.0" in new


@pytest.mark.parametrize(
    ("workload", "title"),
    [("agent-loop", "AgentLoop"), ("my notes-2", "MyNotes2"), ("...", "Workload"), ("é", "Workload")],
)
def test_names_of_workloads(workload: str, title: str) -> None:
    found = record(1, workload=workload, depth_tokens=4096)
    assert f"\nBenchmark{title}/arm=default/depth=4096/users=1 " in render_benchstat([found])


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_no_name_breaks_a_line(model: str, arm: str) -> None:
    found = record(1, found=samples(rounds=1, arm=arm), knobs={arm: {}}, model=model)
    lines = render_benchstat([found]).splitlines()
    assert sum(bool(RESULT.fullmatch(line)) for line in lines) == 1
    assert sum(line.startswith("Benchmark") for line in lines) == 1
    assert sum(bool(CONFIG.fullmatch(line)) for line in lines) == 2
