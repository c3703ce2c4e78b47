"""Whole races on the embedded engine with a small made model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil
import pytest

from tests.autopilot.test_flight import Passenger, one_core
from tests.models.dflash import write_dflash
from velollm.autopilot import Order, RaceWish, find_drafts, tune
from velollm.autopilot.chart import chart
from velollm.autopilot.drafting import drafts_for
from velollm.autopilot.racing import find_llama_server
from velollm.autopilot.tuning import raced_course
from velollm.config import user_paths
from velollm.errors import UsageError, VeloError
from velollm.knobs import KNOBS
from velollm.models.synthetic import TINY
from velollm.tune.candidates import Draft

WISH = RaceWish(knobs=frozenset({"batch", "ubatch", "repack"}))


def order(model: Path, budget_s: float = 30.0) -> Order:
    pins = {"context_tokens": 2048, "threads": 1}
    return Order(str(model), "embedded", pins=pins, paths=user_paths(), probe=one_core, budget_s=budget_s)


@pytest.mark.flight
def test_a_race_is_run_confirmed_kept_and_taken_over(tiny: Path) -> None:
    cockpit = Passenger()
    before = psutil.Process().children(recursive=True)
    code = dataclasses.replace(order(tiny), profile="code")
    found = tune(code, WISH, cockpit)
    assert psutil.Process().children(recursive=True) == before
    assert {t.group for t in found.race.tried} <= {"batch", "repack", "second look"}
    assert {t.name for t in found.race.tried} >= {"repack=off"}
    assert found.short is not None
    assert found.short.arms == ("default", "tuned")
    assert found.raced is not None
    assert found.raced.busy is not None
    assert found.raced.trade is None  # one thread cannot become fewer
    assert found.kept is not None
    assert found.kept.is_final
    assert found.plan.pins == {"context_tokens": 2048, "threads": 1}
    assert any("leads: " in text for text in cockpit.texts)

    again = tune(code, dataclasses.replace(WISH, resume=True), cockpit)
    assert again.raced is None
    assert again.race == found.kept.race
    assert "still holds" in cockpit.notes[-1]

    assert found.plan.knobs["speculation"] == "none"  # a rule would guess for code, and no guess has won here
    course, raced = raced_course(found.course, cockpit, 20.0)
    assert raced is None
    assert course.plan.knobs["speculation"] == "none"
    assert "Taking over the race" in cockpit.notes[-1]
    assert {n: course.plan.knobs[n] for n in found.kept.knobs} == dict(found.kept.knobs)


@pytest.mark.flight
def test_ctrl_c_ends_with_what_leads_and_nothing_running(tiny: Path) -> None:
    class Hasty(Passenger):
        def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
            super().__call__(done, text, left_s)
            if "round 2" in text:
                raise KeyboardInterrupt

    before = psutil.Process().children(recursive=True)
    found = tune(order(tiny, 60.0), WISH, Hasty())
    assert found.race.interrupted
    assert (found.short, found.advised) == (None, False)
    assert psutil.Process().children(recursive=True) == before


def test_a_knob_that_does_not_exist_is_named(tiny: Path) -> None:
    with pytest.raises(UsageError, match="no knob 'speed'"):
        tune(order(tiny), RaceWish(knobs=frozenset({"speed"})), Passenger())
    assert "batch" in KNOBS


def test_drafts_are_files(tiny: Path) -> None:
    assert find_drafts([str(tiny)]) == (tiny.resolve(),)
    with pytest.raises(VeloError):
        find_drafts([str(tiny.with_name("none.gguf"))])


def test_a_draft_trained_for_the_model_is_raced_as_what_it_is(tiny: Path, tmp_path: Path) -> None:
    course = chart(order(tiny), Passenger())
    draft = write_dflash(tmp_path / "draft.gguf", TINY, None, unknown=400)
    assert drafts_for(course, [draft]) == ([Draft(str(draft), "draft-dflash")], ())
    wide = write_dflash(tmp_path / "wide.gguf", dataclasses.replace(TINY, embedding_length=512), None, unknown=400)
    with pytest.raises(VeloError, match="reads states of 512 values"):
        drafts_for(course, [wide])


@pytest.mark.parametrize("folder", ["lib/ollama", "bin", "bin/lib/ollama"])
def test_the_engine_is_found_beside_ollama(tmp_path: Path, folder: str) -> None:
    (tmp_path / "bin").mkdir()
    ollama = tmp_path / "bin" / "ollama"
    ollama.touch()
    assert find_llama_server(ollama) is None
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    engine = tmp_path / folder / "llama-server"
    engine.touch()
    assert find_llama_server(ollama) == engine
