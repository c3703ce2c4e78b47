"""What of a comparison the history gets to know, and what a person is told where it cannot."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.simulated import World
from velollm.autopilot.chart import chart
from velollm.autopilot.keeping import keep_result
from velollm.autopilot.order import Course, Order
from velollm.backends.llamacpp import LlamaCppBackend
from velollm.backends.openai import OpenAiBackend
from velollm.bench.history import Record, append_record, machine_key, read_history
from velollm.bench.result import BenchResult
from velollm.bench.run import run_bench
from velollm.bench.workload import load_workload
from velollm.config import user_paths
from velollm.facts import CpuFacts, Facts, MemoryFacts
from velollm.models.synthetic import TINY, ensure_model

FACTS = Facts(cpu=CpuFacts(model_name="Ryzen 5", usable_cores=4), memory=MemoryFacts(total_bytes=32 << 30))


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)

    def ask(self, question: str) -> bool:
        return False


@pytest.fixture(scope="module")
def result() -> BenchResult:
    world = World()
    return run_bench([world.arm("default"), world.arm("tuned")], load_workload("chat"), clock=world.clock)


@pytest.fixture
def course(tmp_path: Path) -> Course:
    model = ensure_model(TINY, tmp_path)
    return chart(Order(str(model), "embedded", paths=user_paths(), probe=lambda: FACTS), Notes())


def keep(course: Course, result: BenchResult, log: Path | None = None) -> tuple[Record, list[str]]:
    notes = Notes()
    knobs = {"default": course.plan.defaults, "tuned": course.plan.knobs}
    return keep_result(course, result, knobs, notes, log=log), notes.said


def test_engine_machine_and_model_are_kept(course: Course, result: BenchResult) -> None:
    record, notes = keep(course, result)
    assert notes == []
    assert read_history(user_paths().data).records == (record,)
    assert record.engine_version == importlib.metadata.version("xllamacpp")
    assert (record.machine, record.elsewhere) == (machine_key(FACTS), False)
    assert record.profile == "chat"
    digest = record.digests["default"]
    assert record.digests["tuned"] == digest
    again, _ = keep(course, result)
    assert (again.digests["default"], again.id != record.id) == (digest, True)


def test_the_build_is_that_of_the_engines_log(course: Course, result: BenchResult, tmp_path: Path) -> None:
    log = tmp_path / "default.log"
    log.write_text("I common_params_print_info: build 10488 (abc1234) with GNU 12.2.0 for Linux x86_64\n", "utf-8")
    record, _ = keep(replace(course, backend=LlamaCppBackend()), result, log)
    assert record.engine_version == "b10488"
    assert record.engine_build == "10488_(abc1234)_with_GNU_12.2.0_for_Linux_x86_64"
    assert keep(course, result, tmp_path / "none.log")[0].engine_build is None


@pytest.mark.parametrize(("url", "elsewhere"), [("http://10.9.8.7:80/v1", True), ("http://127.0.0.1:9/v1", False)])
def test_a_server_on_another_machine_is_no_part_of_this_one(
    course: Course, result: BenchResult, url: str, elsewhere: bool
) -> None:
    record, _ = keep(replace(course, backend=OpenAiBackend(url)), result)
    assert record.elsewhere == elsewhere
    assert record.machine == (None if elsewhere else machine_key(FACTS))
    assert record.engine_version is None


def test_a_damaged_history_is_told_and_costs_nothing(course: Course, result: BenchResult) -> None:
    data = user_paths().data
    keep(course, result)
    (data / "history.db").write_bytes(b"\xa5" * 9000)
    record, (note,) = keep(course, result)
    assert "damaged" in note and "history.db.damaged-" in note
    assert read_history(data).records == (record,)


def test_a_history_that_cannot_be_written_is_told(course: Course, result: BenchResult) -> None:
    (user_paths().data / "history.db").mkdir(parents=True)
    record, (note,) = keep(course, result)
    assert record.samples == result.runs
    assert note.startswith("The result is not in the history: cannot write the history")


def test_a_result_of_before_is_not_overwritten(course: Course, result: BenchResult) -> None:
    record, _ = keep(course, result)
    append_record(user_paths().data, record.model_copy(update={"model": "another"}))
    assert read_history(user_paths().data).records == (record,)
