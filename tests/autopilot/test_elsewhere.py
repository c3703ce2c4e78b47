"""Plans for machines that are only described."""

from __future__ import annotations

from pathlib import Path

import pytest

from velollm.autopilot import Order, chart_elsewhere
from velollm.errors import UsageError, VeloError
from velollm.models.synthetic import TINY, ensure_model


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.yaml"
    path.write_text("- 32 GB RAM, RTX 4070 12 GB\n", encoding="utf-8")
    return path


def test_a_model_of_the_catalog_on_a_described_machine(machine: Path) -> None:
    course = chart_elsewhere(Order("llama3.1:8b@q4_K_M", hardware=machine))
    assert course.backend.name == "ollama"
    assert course.current is None
    assert course.model.path is None
    placement = course.plan.placement
    assert placement is not None
    assert placement.where == "gpu"
    assert course.plan.knobs["context_tokens"] == 8192
    assert course.facts.sources["memory.available_bytes"].startswith("all of it")
    assert {change.key for change in course.plan.changes} >= {"num_ctx", "OLLAMA_KEEP_ALIVE"}


def test_what_does_not_fit_names_what_would(machine: Path) -> None:
    plan = chart_elsewhere(Order("llama3.3:70b@q4_K_M", hardware=machine)).plan
    assert plan.placement is None
    assert [item.quantization for item in plan.nearest]
    assert "does not fit" in plan.skipped["fit-memory"].reason


@pytest.mark.parametrize("backend", ["llamacpp", "embedded"])
def test_an_engine_that_is_not_here_can_be_planned_for(machine: Path, backend: str) -> None:
    course = chart_elsewhere(Order("qwen3:30b-a3b@q4_K_M", backend, hardware=machine))
    placement = course.plan.placement
    assert placement is not None
    # The wheels of the embedded engine compute on the CPU.
    assert placement.where == ("cpu" if backend == "embedded" else "gpu+cpu")


def test_a_file_that_is_here(machine: Path, tmp_path: Path) -> None:
    path = ensure_model(TINY, tmp_path)
    course = chart_elsewhere(Order(str(path), hardware=machine))
    assert course.model.path == path
    assert course.plan.placement is not None
    assert course.plan.placement.where == "gpu"


@pytest.mark.parametrize(("model", "backend"), [(None, "auto"), ("llama3.1:8b", "engine9")])
def test_what_is_lacking_or_unknown(machine: Path, model: str | None, backend: str) -> None:
    with pytest.raises(UsageError):
        chart_elsewhere(Order(model, backend, hardware=machine))


def test_an_unknown_model_names_near_ones(machine: Path) -> None:
    with pytest.raises(VeloError, match=r"no model 'llama3\.1:9b'") as caught:
        chart_elsewhere(Order("llama3.1:9b", hardware=machine))
    assert "llama3" in caught.value.hint
