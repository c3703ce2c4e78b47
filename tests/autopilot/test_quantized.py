"""Smaller files of a model: found beside it, measured, and shown with their price."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from tests.autopilot.test_flight import Passenger, one_core
from velollm.autopilot import Order
from velollm.autopilot.chart import chart
from velollm.autopilot.quantized import measure_smaller, note_of_none, smaller_files
from velollm.config import user_paths
from velollm.models.synthetic import TINY, Recipe, ensure_model
from velollm.report.price import render_smaller


def order(model: Path, backend: str = "embedded") -> Order:
    pins = {"context_tokens": 512, "threads": 1}
    return Order(str(model), backend, pins=pins, paths=user_paths(), probe=one_core, budget_s=30.0)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two formats, and another model."""
    found = tmp_path_factory.mktemp("formats")
    shutil.copy(tiny, found / "four.gguf")
    shutil.move(ensure_model(TINY, found, Recipe("f16")), found / "whole.gguf")
    (found / "broken.gguf").write_bytes(b"GGUF")
    return found


def test_smaller_ones_are_found_and_larger_ones_are_not(folder: Path) -> None:
    (found,) = smaller_files(chart(order(folder / "whole.gguf"), Passenger()))
    assert found.model.path == folder / "four.gguf"
    assert found.facts.model is not None
    assert found.facts.model.file_type == "Q4_0"
    assert smaller_files(chart(order(folder / "four.gguf"), Passenger())) == []


@pytest.mark.flight
def test_a_smaller_file_is_measured_with_its_price(folder: Path) -> None:
    course, cockpit = chart(order(folder / "whole.gguf"), Passenger()), Passenger()
    before = psutil.Process().children(recursive=True)
    (file,) = measure_smaller(course, course.backend, smaller_files(course), course.plan.knobs, 12.0, cockpit)
    assert psutil.Process().children(recursive=True) == before
    assert (file.name, file.file_type) == (str(folder / "four.gguf"), "Q4_0")
    assert file.metric == "turn"
    assert file.speed.estimate is not None
    assert file.memory_share is not None
    assert 0 < file.memory_share < 1
    # Made files of two formats have other weights, so that their answers do differ.
    assert file.price.kl_mean > 0
    lines = render_smaller(file)
    assert "in Q4_0" in lines[0]
    assert "of the memory" in lines[0]
    assert "price of Q4_0" in lines[1]
    assert lines[-1] == f"To use it: velollm optimize {folder / 'four.gguf'}"
    assert any("smaller files of the model" in text for text in cockpit.texts)


def test_nothing_is_said_of_files_that_ollama_would_make_to_those_without_it(folder: Path) -> None:
    assert note_of_none(chart(order(folder / "whole.gguf"), Passenger())) is None
